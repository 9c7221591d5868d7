"""The demo: SmolLM2-135M on arithmetic and word problems, six conditions, minutes on a CPU.

A few steps on a model of this size show that every part runs and what each condition feeds into
training. They do not show which condition is better, and the report says so.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from sdkernels.train.study import Condition, run_study

# Sums that the model sometimes gets right, so that verdicts differ within a group; and word
# problems, which it does not.
PROBLEMS = "reasoning-gym:chain_sum(min_terms=2,max_terms=2,min_digits=1,max_digits=1),gsm_symbolic"

CONDITIONS = (
    Condition("grpo", "GRPO (binary reward)", {"recipe": "grpo", "context": "none"}),
    Condition("reference_solution", "Reference solution", {"context": "reference_solution"}),
    Condition(
        "reference_without_thinking",
        "Reference without thinking",
        {"context": "reference_without_thinking"},
    ),
    Condition("step_critique", "Step critique", {"context": "step_critique"}),
    Condition("verifier_feedback", "Verifier feedback", {"context": "verifier_feedback"}),
    Condition(
        "dasd",
        "DASD (reference solution)",
        {"recipe": "dasd", "context": "reference_solution"},
    ),
)

# Chosen by measuring: see "Demo budget" in docs/decisions.md.
SETTINGS: dict[str, Any] = {
    "dataset": PROBLEMS,
    "eval_dataset": PROBLEMS,
    "eval_dataset_size": 16,
    # One prompt a micro-batch: short sums are not padded to the length of word problems, and half
    # the activations are alive at a time.
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 2,
    "num_generations": 4,
    "max_completion_length": 64,
    "temperature": 0.6,
    "temperature_eval": 0.0,
    "recipe": "sdpo",
    "teacher_model_kind": "frozen",
    "critic_max_new_tokens": 64,
    "learning_rate": 3e-5,
    "dump_tokens": 2,
    "save_strategy": "no",
    "overwrite_output_dir": True,
}


def run_demo(
    out: str | Path = "runs/demo",
    *,
    steps: int = 3,
    seed: int = 0,
    model: str = "smollm2",
    **changes: Any,
) -> list[dict[str, Any]]:
    """Train under every condition; each leaves a run folder below `out`, for `sdkernels.report`.

    Args:
        out: folder for the runs; an earlier demo in it is replaced.
        steps: optimiser steps per condition.
        seed: of problems, rollouts and evaluation; the same for all conditions.
        model: `smollm2`, a hub id or a local folder.
        changes: other settings of `SelfDistillConfig`, for all conditions.

    Returns:
        The summaries of the runs, in the order of `CONDITIONS`.

    Raises:
        ValueError: steps below 1, or settings that cannot work.
        RunError: a run had to stop; see `sdkernels.train.train`.
    """
    if steps < 1:
        raise ValueError(f"steps={steps}: expected at least 1 optimiser step per condition")
    base = SETTINGS | {
        "model_name_or_path": model,
        "max_steps": steps,
        "dataset_size": steps * SETTINGS["gradient_accumulation_steps"],
        "seed": seed,
    }
    return run_study(out, CONDITIONS, base | changes, announce=_announce)


def _announce(line: str) -> None:
    print(f"\n{line}", flush=True)
