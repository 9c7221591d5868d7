"""GRPO and DistillationTrainer with the engine train as they do without it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import trl_runs as runs
from helpers.tiny_models import tiny_causal_lm

from sdkernels.integrations.trl import use_engine
from sdkernels.integrations.trl.tiled import _EngineLogProb

# TRL computes these in float32 whatever the model's dtype; the engine in float64.
FLOAT32 = {"rtol": 2e-5, "atol": 1e-5}


@pytest.mark.parametrize(
    "options",
    [
        {"loss_type": "dapo", "num_iterations": 2, "epsilon_high": 0.28, "temperature": 0.8},
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "num_iterations": 2},
        {"loss_type": "cispo", "epsilon_high": 2.0, "entropy_coef": 0.1},
        {"loss_type": "bnpo", "top_entropy_quantile": 0.5, "mask_truncated_completions": True},
        {"loss_type": "dr_grpo", "beta": 0.1},
    ],
    ids=lambda options: " ".join(f"{k}={v}" for k, v in options.items()),
)
def test_grpo(tmp_path: Path, options: dict[str, Any]) -> None:
    def make() -> Any:
        return runs.grpo(tmp_path, runs.saved(tiny_causal_lm(), tmp_path), **options)

    runs.compare(make, **FLOAT32)


@pytest.mark.parametrize("family", ["Gemma3"])
def test_grpo_on_models_that_transform_their_logits(tmp_path: Path, family: str) -> None:
    runs.compare(lambda: runs.grpo(tmp_path, tiny_causal_lm(family)), **FLOAT32)


def test_grpo_with_its_head_in_float32(tmp_path: Path) -> None:
    """TRL gives the head a `forward` of its own that casts; its tiles read the weight, as we do."""
    runs.compare(
        lambda: runs.grpo(tmp_path, tiny_causal_lm().float(), cast_lm_head_to_fp32=True), **FLOAT32
    )


def test_other_outputs_are_refused() -> None:
    hidden, weight, ids = torch.randn(3, 4), torch.randn(5, 4), torch.arange(3)
    with pytest.raises(ValueError, match="is_top1"):
        _EngineLogProb(lambda: None).apply(
            hidden, weight, None, ids, 1.0, 8, None, 1.0, ("log_probs", "is_top1")
        )


@pytest.mark.parametrize(
    "options",
    [{"beta": 0.0}, {"beta": 0.4, "temperature": 0.8}],
    ids=lambda options: " ".join(f"{k}={v}" for k, v in options.items()),
)
def test_distillation(tmp_path: Path, options: dict[str, Any]) -> None:
    runs.compare(lambda: runs.distillation(tmp_path, **options), **FLOAT32)


def test_distillation_between_architectures(tmp_path: Path) -> None:
    def make() -> Any:
        return runs.distillation(
            tmp_path, tiny_causal_lm("Qwen2"), tiny_causal_lm("Granite", seed=1)
        )

    runs.compare(make, **FLOAT32)


def test_a_teacher_on_a_server_is_refused(tmp_path: Path) -> None:
    trainer = runs.distillation(tmp_path)
    trainer.teacher_model = None
    with pytest.raises(ValueError, match=r"teacher_model=None .*use a local teacher"):
        use_engine(trainer)
