"""The smoke scale of every published experiment, a step each on a tiny random model."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers.trainer_runs import lines

from sdkernels.contexts import Example
from sdkernels.train.experiments import experiments, find
from sdkernels.train.reproduce import METHOD, SMOKE, config_of, reproduce, smoke_settings
from sdkernels.train.trainer import SelfDistillTrainer

NAMES = list(experiments())


@pytest.fixture
def tiny(model_folder: Path) -> dict[str, Any]:
    """What makes the smoke scale smaller still."""
    return {
        "model_name_or_path": str(model_folder),
        "max_steps": 1,
        "max_completion_length": 6,
        "critic_max_new_tokens": 6,
        "eval_dataset": None,
        "eval_dataset_size": None,
        "truncate_context": True,
        "dump_tokens": 0,
        "use_cpu": True,
        "disable_tqdm": True,
    }


@pytest.mark.parametrize("name", NAMES)
def test_the_smoke_scale_runs_for_a_step(name: str, tiny: dict[str, Any], tmp_path: Path) -> None:
    [experiment] = find(name)
    summary = reproduce(experiment, out=tmp_path, changes=tiny)
    assert (summary["steps"], summary["condition"]) == (1, name)
    full = experiment.settings()
    assert summary["recipe"] == full["recipe"]
    if "teacher_model_kind" in full:
        assert summary["teacher"] == full["teacher_model_kind"]
    metrics = (tmp_path / f"{name}-smoke" / "metrics.jsonl").read_text().splitlines()
    assert len(metrics) == 1
    assert json.loads(metrics[0])["completion_length"] > 0
    assert not (tmp_path / f"{name}-smoke" / "final").exists()


@pytest.mark.parametrize("name", NAMES)
def test_the_method_stays(name: str, tmp_path: Path) -> None:
    [experiment] = find(name)
    full = experiment.settings()
    small, notes = smoke_settings(full)
    kept = {key: small.get(key) for key in METHOD if key in full}
    expected = {key: full[key] for key in METHOD if key in full}
    if name.endswith("refsol"):
        assert "stands in for that of a stronger model" in notes[0]
        expected |= {"context": "reference_solution", "context_args": None}
    assert kept == expected
    assert {"recipe", "recipe_args", "context", "gate", "gate_args", "use_peft"} <= set(METHOD)
    config = config_of(experiment, out=tmp_path, changes={"use_cpu": True})
    assert config.learning_rate == float(full["learning_rate"])
    assert config.model_name_or_path == SMOKE["model_name_or_path"]
    assert config.is_off_policy == ("steps_per_generation" in full)
    assert config.dataset_size <= full.get("dataset_size", 16)


def test_stand_ins_are_named() -> None:
    def notes(name: str) -> str:
        return "; ".join(smoke_settings(experiments()[name].settings())[1])

    assert "the critic Qwen/QwQ-32B" in notes("feedback-alignment/stepalignfb")
    assert "no pairing" in notes("feedback-alignment/refsol")
    assert notes("dasd/dasd") == ""


def test_full_scale_is_the_file_and_changes_win(tmp_path: Path) -> None:
    [experiment] = find("feedback-alignment/refsol")
    config = config_of(
        experiment, scale="full", out=tmp_path, changes={"use_cpu": True, "lora_r": 8}
    )
    full = experiment.settings()
    assert config.model_name_or_path == full["model_name_or_path"]
    assert config.learning_rate == 5e-6
    assert (config.lora_r, config.lora_alpha) == (8, 128)
    assert config.output_dir == str(tmp_path / "feedback-alignment" / "refsol-full")
    assert not config.overwrite_output_dir


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"scale": "fullx"}, "scale='fullx' .did you mean 'full'"),
        ({"changes": {"max_step": 1}}, "--set: unknown setting 'max_step'; did you mean max_steps"),
    ],
)
def test_wrong_input(settings: dict[str, Any], message: str) -> None:
    [experiment] = find("dasd/dasd")
    with pytest.raises(ValueError, match=message):
        reproduce(experiment, **settings)


@pytest.mark.parametrize("name", ["dasd/dasd", "degrade/ds7b-sdpo-solution"])
def test_the_warm_up_of_a_study_is_in_its_learning_rates(
    name: str,
    tmp_path: Path,
    tokenizer: Any,
    make_model: Callable[..., Any],
    make_problems: Callable[..., list[Example]],
) -> None:
    tiny = {
        "bf16": False,
        "gradient_checkpointing": False,
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "chat_template_kwargs": None,
        "max_steps": 3,
        "num_generations": 2,
        "max_prompt_length": 200,
        "max_completion_length": 8,
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": None,
        "dump_tokens": 0,
    }
    config = config_of(find(name)[0], scale="full", out=tmp_path, changes=tiny)
    assert config.warmup_steps >= 20
    trainer = SelfDistillTrainer(make_model(), config, make_problems(4), tokenizer)
    trainer.train()
    rates = [line["learning_rate"] for line in lines(trainer)]
    wanted = [config.learning_rate * step / config.warmup_steps for step in range(3)]
    assert rates == pytest.approx(wanted)
