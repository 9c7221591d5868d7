"""Run a published experiment at full scale, or its pipeline on the embedded model in a minute.

At smoke scale the method stays (recipe, context, gate, teacher, optimiser steps per batch of
rollouts, learning rate) and everything that costs is made small. Its numbers show that the
experiment runs. They say nothing about the paper's.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sdkernels.train.config import SelfDistillConfig
from sdkernels.train.config_file import refuse_unknown
from sdkernels.train.experiments import Experiment
from sdkernels.train.run import train
from sdkernels.train.settings import check_choice

SCALES = ("smoke", "full")
# What makes the method; all else at smoke scale comes from SMOKE or is the default.
METHOD = (
    "recipe",
    "recipe_args",
    "context",
    "context_args",
    "gate",
    "gate_args",
    "aggregation",
    "scale_rewards",
    "teacher_model_kind",
    "teacher_update_rate",
    "teacher_sync_steps",
    "loss_temperature",
    "teacher_temperature",
    "skip_first_tokens",
    "mask_truncated_completions",
    "num_iterations",
    "use_peft",
    "learning_rate",
    "weight_decay",
    "max_grad_norm",
    "title",
)
SUMS = "reasoning-gym:chain_sum(min_terms=2,max_terms=2,min_digits=1,max_digits=1)"
SMOKE: dict[str, Any] = {
    "model_name_or_path": "smollm2",
    "dataset": SUMS,
    "eval_dataset": SUMS,
    "eval_dataset_size": 8,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "max_completion_length": 48,
    "critic_max_new_tokens": 48,
    "max_steps": 2,
    "temperature": 0.6,
    "temperature_eval": 0.0,
    "save_strategy": "no",
}
SMOKE_PROBLEMS = 16
SMOKE_GENERATIONS = 4


def smoke_settings(full: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Settings of the smoke scale, and what it had to change about the method, in words."""
    small = SMOKE | {name: full[name] for name in METHOD if name in full}
    notes = []
    small["num_generations"] = min(full.get("num_generations", 8), SMOKE_GENERATIONS)
    passes = full.get("steps_per_generation", 0) // full.get("gradient_accumulation_steps", 1)
    prompts = small["gradient_accumulation_steps"] * max(passes, 1)
    if passes > 1:
        small["steps_per_generation"] = prompts
    size = min(full.get("dataset_size") or SMOKE_PROBLEMS, SMOKE_PROBLEMS)
    small["dataset_size"] = size
    small["dataset_repeat"] = -(-prompts // size)
    if small.get("context") == "stronger_solution":
        small |= {"context": "reference_solution", "context_args": None}
        notes.append("the task's own solution stands in for that of a stronger model")
    if "teacher_chat_template_kwargs" in full:
        notes.append("the embedded model has no thinking to switch on or off, so no pairing either")
    if full.get("critic_server_model"):
        notes.append(f"the embedded model stands in for the critic {full['critic_server_model']}")
    return small, notes


def reproduce(
    experiment: Experiment,
    *,
    scale: str = "smoke",
    out: str | Path = "runs/reproduce",
    changes: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Train and evaluate; the run's folder is `out/<name>-<scale>`.

    Args:
        changes: settings that win over those of the experiment, e.g. another model.

    Returns:
        The run's summary; see `sdkernels.train.train`.

    Raises:
        ValueError: an unknown scale or setting, or settings that cannot work here.
        RunError: the run had to stop.
    """
    config = config_of(experiment, scale=scale, out=out, changes=changes)
    return train(config, save_final=scale == "full")


def config_of(
    experiment: Experiment,
    *,
    scale: str = "smoke",
    out: str | Path = "runs/reproduce",
    changes: Mapping[str, Any] | None = None,
) -> SelfDistillConfig:
    """The configuration that `reproduce` runs."""
    check_choice("scale", scale, SCALES)
    refuse_unknown(changes or {}, "--set")
    settings = experiment.settings()
    if scale == "smoke":
        settings, _ = smoke_settings(settings)
        settings["overwrite_output_dir"] = True
    own = {
        "output_dir": str(Path(out) / f"{experiment.name}-{scale}"),
        "condition": experiment.name,
    }
    return SelfDistillConfig(**own | settings | dict(changes or {}))
