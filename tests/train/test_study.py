"""Studies: conditions that differ in one thing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from sdkernels import report
from sdkernels.train.demo import CONDITIONS, SETTINGS, run_demo
from sdkernels.train.study import Condition, run_study

SMALL = {
    "dataset": "reasoning-gym:chain_sum(min_terms=2,max_terms=2,min_digits=1,max_digits=1)",
    "dataset_size": 2,
    "eval_dataset": "reasoning-gym:chain_sum(min_terms=2,max_terms=2,min_digits=1,max_digits=1)",
    "eval_dataset_size": 2,
    "per_device_train_batch_size": 1,
    "num_generations": 2,
    "max_completion_length": 8,
    "max_steps": 2,
    "learning_rate": 0.05,
    "recipe": "sdft",
    "critic_max_new_tokens": 4,
    "use_cpu": True,
    "disable_tqdm": True,
    "save_strategy": "no",
    "dump_tokens": 1,
}


def first_tokens(folder: Path) -> list[list[str]]:
    records = [json.loads(line) for line in (folder / "tokens.jsonl").read_text().splitlines()]
    return [record["tokens"] for record in records if record["step"] == 1]


def test_conditions_start_from_the_same_weights_and_prompts(model_folder, tmp_path):
    conditions = [
        Condition("one", "One", {"context": "reference_solution"}),
        Condition("other", "Other", {"context": "hint"}),
        Condition("critique", "Critique", {"context": "step_critique"}),
        Condition("again", "One again", {"context": "reference_solution"}),
    ]
    lines: list[str] = []
    base = SMALL | {"model_name_or_path": str(model_folder)}
    summaries = run_study(tmp_path, conditions, base, announce=lines.append)
    assert lines == ["[1/4] One", "[2/4] Other", "[3/4] Critique", "[4/4] One again"]
    assert [summary["condition"] for summary in summaries] == ["one", "other", "critique", "again"]
    # What is sampled before the first update is the same, and what is trained afterwards differs.
    # (A random critic writes nothing usable, so that condition has no token to show.)
    starts = [first_tokens(tmp_path / name) for name in ("one", "other", "again")]
    assert starts[0] == starts[1] == starts[2]
    losses = [summary["last"]["loss"] for summary in summaries]
    assert losses[0] != losses[1]
    # A condition repeated at the end gives what it gave at the beginning: nothing carries over.
    assert losses[0] == losses[3]
    assert summaries[0]["after"] == summaries[3]["after"]
    assert summaries[0]["before"] == summaries[1]["before"]
    assert (tmp_path / "critique" / "critiques").is_dir()


def test_two_conditions_of_one_name(tmp_path):
    twice = [Condition("a", "A"), Condition("a", "B")]
    with pytest.raises(ValueError, match="a name stands twice"):
        run_study(tmp_path, twice, {})


def test_the_demo_end_to_end(make_model, tokenizer, tmp_path, capsys):
    """All six conditions on the tiny model: folders and page."""
    model_folder = tmp_path / "model"
    make_model(max_position_embeddings=4096).save_pretrained(model_folder)
    tokenizer.save_pretrained(model_folder)
    changes: dict[str, Any] = {
        name: SMALL[name]
        for name in ("eval_dataset_size", "num_generations", "max_completion_length", "use_cpu")
    }
    out = tmp_path / "demo"
    settings = {"steps": 1, "model": str(model_folder), "disable_tqdm": True}
    summaries = run_demo(out, **settings, critic_max_new_tokens=4, **changes)
    names = [condition.name for condition in CONDITIONS]
    assert [summary["condition"] for summary in summaries] == names
    assert sorted(path.name for path in out.iterdir()) == sorted(names)
    output = capsys.readouterr().out
    assert all(f"[{i}/6] {c.title}" in output for i, c in enumerate(CONDITIONS, start=1))
    for name in names:
        assert json.loads((out / name / "summary.json").read_text())["steps"] == 1
        shown = out / name / "tokens.jsonl"
        assert name == "step_critique" or shown.read_text().strip()  # a random critic says nothing
    page = report.build(out, order=names)
    assert "the mechanics, not the science" in page.read_text()
    again = run_demo(out, **settings, **changes)  # an earlier demo is replaced
    assert [summary["after"] for summary in again] == [summary["after"] for summary in summaries]


def test_the_demo_refuses_no_steps(tmp_path):
    with pytest.raises(ValueError, match="steps=0"):
        run_demo(tmp_path, steps=0)


def test_the_demo_is_what_the_issue_asks_for():
    assert [condition.settings.get("context") for condition in CONDITIONS] == [
        "none",
        "reference_solution",
        "reference_without_thinking",
        "step_critique",
        "verifier_feedback",
        "reference_solution",
    ]
    assert CONDITIONS[0].settings["recipe"] == "grpo"
    assert CONDITIONS[-1].settings["recipe"] == "dasd"
    assert SETTINGS["dataset"] == SETTINGS["eval_dataset"]
