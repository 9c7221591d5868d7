"""A run from its settings to its folder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sdkernels.train.config import SelfDistillConfig
from sdkernels.train.config_file import parse_config
from sdkernels.train.errors import ModelError
from sdkernels.train.loading import load_model
from sdkernels.train.run import Parts, load_dataset, train


@pytest.fixture
def data(tmp_path) -> Path:
    file = tmp_path / "sums.jsonl"
    rows = [
        {"prompt": f"{i}+{i}?", "answer": f"{2 * i}", "solution": f"It is {2 * i}."}
        for i in range(4)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


@pytest.fixture
def make(make_config, model_folder, data):
    def config(**changes) -> SelfDistillConfig:
        settings = {
            "model_name_or_path": str(model_folder),
            "dataset": str(data),
            "eval_dataset": str(data),
            "dump_tokens": 1,
        }
        return make_config(**settings | changes)

    return config


def test_a_run_leaves_everything_in_its_folder(make):
    config = make(save_strategy="steps", save_steps=2)
    summary = train(config)
    folder = Path(config.output_dir)
    names = {path.name for path in folder.iterdir()}
    assert names == {
        "config.yaml",
        "before.json",
        "after.json",
        "metrics.jsonl",
        "tokens.jsonl",
        "summary.json",
        "checkpoint-2",
        "final",
    }
    assert json.loads((folder / "summary.json").read_text()) == json.loads(json.dumps(summary))
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert summary["last"] == lines[-1]
    assert (summary["condition"], summary["teacher"]) == ("opsd-reference_solution", "frozen")
    assert (summary["before"]["n"], summary["after"]["k"], summary["steps"]) == (4, 1, 2)
    trained, _ = load_model(str(folder / "final"))
    start, _ = load_model(config.model_name_or_path)
    moved = [
        float((a - b).detach().abs().max())
        for a, b in zip(trained.parameters(), start.parameters(), strict=True)
    ]
    assert max(moved) > 1e-4


def test_the_written_configuration_repeats_the_run(make, tmp_path):
    first = make(eval_dataset=None, recipe="dasd", recipe_args={"beta": 0.3})
    train(first)
    file = str(Path(first.output_dir) / "config.yaml")
    again = parse_config(["--config", file, "--output_dir", str(tmp_path / "again")])
    train(again)
    losses = [
        [json.loads(line)["loss"] for line in (Path(c.output_dir) / "metrics.jsonl").open()]
        for c in (first, again)
    ]
    assert losses[0] == losses[1]


def test_the_report_reads_the_run(make):
    from sdkernels import report

    config = make(recipe="dasd", max_completion_length=12)
    summary = train(config)
    page = report.build(config.output_dir)
    assert page.stat().st_size > 1000
    assert "dasd" in report.terminal_table([summary])


def test_grpo_needs_no_teacher(make):
    summary = train(make(recipe="grpo", eval_dataset=None))
    assert (summary["teacher"], summary["context"]) == (None, "none")
    assert summary["before"] is None


def test_an_external_teacher_is_loaded_and_checked(make, tmp_path, tokenizer, make_model):
    teacher = tmp_path / "teacher"
    make_model(seed=4, hidden_size=16).save_pretrained(teacher)
    tokenizer.save_pretrained(teacher)
    settings = {
        "teacher_model_kind": "external",
        "teacher_model_name_or_path": str(teacher),
        "eval_dataset": None,
    }
    summary = train(make(**settings))
    assert summary["teacher"] == "external"
    make_model(vocab_size=300).save_pretrained(teacher)
    with pytest.raises(ValueError, match=r"259 rows, the teacher's 300.*valid_vocab=259"):
        train(make(**settings, overwrite_output_dir=True))
    summary = train(make(**settings, overwrite_output_dir=True, valid_vocab=259))
    assert summary["last"]["gap_abs"] > 0


def test_a_local_critic_is_the_initial_student(make):
    config = make(context="step_critique", critic_max_new_tokens=4, eval_dataset=None)
    summary = train(config)
    assert (Path(config.output_dir) / "critiques").is_dir()
    assert summary["steps"] == 2


def test_a_critic_server_that_is_down_stops_before_training(make, monkeypatch):
    from sdkernels.contexts import server_critic

    monkeypatch.setattr(server_critic.time, "sleep", lambda _: None)
    config = make(
        context="step_critique", critic_server_url="http://127.0.0.1:9", critic_timeout=1.0
    )
    with pytest.raises(RuntimeError, match=r"critic server http://127\.0\.0\.1:9"):
        train(config)
    assert not (Path(config.output_dir) / "metrics.jsonl").exists()


def test_a_critic_server_gets_no_control_tokens_of_the_student(make, monkeypatch, tokenizer):
    from sdkernels.contexts import ServerCritic
    from sdkernels.train.run import make_critic

    monkeypatch.setattr(ServerCritic, "check", lambda _: None)
    config = make(context="step_critique", critic_server_url="http://127.0.0.1:9")
    assert make_critic(config, tokenizer).tokenizer is tokenizer


def test_lora_runs_resume(make):
    config = make(use_peft=True, lora_r=2, save_strategy="steps", save_steps=1, max_steps=1)
    train(config)
    again = make(
        use_peft=True,
        lora_r=2,
        save_strategy="steps",
        save_steps=1,
        max_steps=2,
        resume_from_checkpoint="last",
    )
    summary = train(again)
    assert summary["steps"] == 2
    whole = make(use_peft=True, lora_r=2, max_steps=2, output_dir=str(again.output_dir) + "-whole")
    train(whole)
    from safetensors.torch import load_file

    ours, theirs = (
        load_file(str(Path(c.output_dir) / "final" / "adapter_model.safetensors"))
        for c in (again, whole)
    )
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())


def test_the_evaluation_before_training_survives_a_resume(make):
    settings = {"save_strategy": "steps", "save_steps": 1, "learning_rate": 0.5}
    first = train(make(**settings, max_steps=1))
    second = train(make(**settings, max_steps=2, resume_from_checkpoint="last"))
    assert second["before"] == first["before"]
    assert second["after"] != first["before"]


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"dataset": None}, ValueError, "dataset is not set"),
        ({"dataset": "missing.jsonl"}, ValueError, "missing.jsonl"),
        ({"model_name_or_path": "./gone"}, ModelError, "no such folder"),
        ({"recipe": "opsdd"}, ValueError, "opsd"),
        ({"context": "reference"}, ValueError, "reference_solution"),
        ({"recipe_args": {"alfa": 1}}, ValueError, "alfa"),
        ({"context": "hint"}, ValueError, "needs `hint`, which 4 of 4 examples lack"),
    ],
)
def test_wrong_input_stops_before_training(make, tmp_path, changes, error, message):
    with pytest.raises(error, match=message):
        train(make(**changes))
    assert not list(tmp_path.rglob("metrics.jsonl"))


def test_an_empty_dataset(make, tmp_path):
    empty = tmp_path / "empty.jsonl"
    empty.write_text("")
    with pytest.raises(ValueError, match=r"empty\.jsonl"):
        train(make(dataset=str(empty)))


def test_generated_problems(make_config):
    config = make_config(
        dataset="reasoning-gym:chain_sum",
        dataset_size=3,
        dataset_args={"min_terms": 2, "max_terms": 2},
        eval_dataset="reasoning-gym:chain_sum",
        eval_dataset_size=2,
    )
    training, evaluation = load_dataset(config), load_dataset(config, evaluation=True)
    assert (len(training), len(evaluation)) == (3, 2)
    assert not {e.prompt[0]["content"] for e in training} & {
        e.prompt[0]["content"] for e in evaluation
    }
    assert all(example.solution for example in training)


def test_parts_are_taken_as_they_are(make, make_model, tokenizer, make_problems):
    model = make_model()
    parts = Parts(model=model, tokenizer=tokenizer, examples=make_problems(2), before={"x": 1})
    parts.before = None
    summary = train(make(dataset=None, eval_dataset=None), parts, save_final=False)
    assert summary["steps"] == 2
    assert not (Path(make().output_dir) / "final").exists()


@pytest.mark.slow
def test_the_embedded_model_trains(make_config):
    """One step of SmolLM2 on a generated word problem, through the real loader and the engine."""
    config = make_config(
        dataset="reasoning-gym:gsm_symbolic",
        dataset_size=1,
        per_device_train_batch_size=1,
        num_generations=2,
        max_completion_length=12,
        max_steps=1,
        recipe="dasd",
        learning_rate=1e-5,
        dump_tokens=1,
    )
    summary = train(config, save_final=False)
    line = summary["last"]
    assert 0 < line["entropy"] < 10.8  # log of the vocabulary
    assert 0 < line["gap_abs"] < 20
    assert line["grad_norm"] > 0
    assert 0 < line["num_tokens"] <= 24


def test_training_examples_are_repeated_and_evaluation_has_its_own_columns(make, tmp_path):
    file = tmp_path / "other.jsonl"
    file.write_text(json.dumps({"prompt": "2+2?", "text": "no", "result": "4"}) + "\n")
    config = make(
        dataset_repeat=3,
        dataset_columns={"answer": "answer"},
        eval_dataset=str(file),
        eval_dataset_columns={"answer": "result"},
    )
    training, evaluation = load_dataset(config), load_dataset(config, evaluation=True)
    assert [example.answer for example in training] == ["0", "2", "4", "6"] * 3
    assert [example.answer for example in evaluation] == ["4"]
    with pytest.raises(ValueError, match="there is no column 'result'"):
        load_dataset(make(dataset_columns={"answer": "result"}))
    with pytest.raises(ValueError, match="dataset_repeat=0"):
        make(dataset_repeat=0)
