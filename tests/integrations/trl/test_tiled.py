"""GRPO and DistillationTrainer with the engine train as they do without it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import trl_runs as runs
from helpers.tiny_models import tiny_causal_lm

from sdkernels.integrations.trl import use_engine
from sdkernels.integrations.trl.tiled import _divergence_loss, _EngineLogProb

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


def test_log_probs_are_of_the_logits_that_trl_means() -> None:
    """Bias, scale, softcap and temperature, in TRL's order."""
    gen = torch.Generator().manual_seed(0)
    hidden, weight, bias = (
        torch.randn(shape, generator=gen).double() for shape in [(5, 4), (7, 4), (7,)]
    )
    ids = torch.tensor([0, 6, 2, 2, 5])
    logp, entropy, *others = _EngineLogProb(lambda: None).apply(
        hidden, weight, bias, ids, 0.7, 8, 2.0, 0.5, ("log_probs", "entropy")
    )
    logits = 2.0 * torch.tanh(0.5 * (hidden @ weight.T + bias) / 2.0)
    expected = (logits / 0.7).log_softmax(-1)
    torch.testing.assert_close(logp, expected.gather(-1, ids[:, None]).squeeze(-1))
    torch.testing.assert_close(entropy, -(expected.exp() * expected).sum(-1))
    assert others == [None, None, None]


def test_autocast_decides_the_dtype_of_tiled_products() -> None:
    hidden, weight, bias, ids = (
        torch.randn(5, 4),
        torch.randn(7, 4),
        torch.randn(7),
        torch.arange(5),
    )

    def logp(*given: torch.Tensor) -> torch.Tensor:
        return _EngineLogProb(lambda: None).apply(*given, ids, 1.0, 8, None, 1.0, ("log_probs",))[0]

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = logp(hidden, weight, bias)
    expected = logp(hidden.bfloat16(), weight.bfloat16(), bias.bfloat16())
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


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


def divergence_inputs() -> dict[str, Any]:
    gen = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=gen)

    return {
        "student": [normal(2, 5, 4), normal(7, 4), normal(7)],
        "teacher": [normal(2, 5, 6), normal(7, 6), normal(7)],
        "mask": torch.tensor([[1, 1, 1, 0, 0], [0, 1, 1, 1, 0]]),
    }


@pytest.mark.parametrize("items", [None, 9, torch.tensor(9.0)], ids=str)
def test_the_divergence_takes_every_argument_of_trls(items: Any) -> None:
    from trl.trainer.distillation_trainer import _chunked_divergence_loss

    found = []
    for function in (_divergence_loss, _chunked_divergence_loss):
        inputs = divergence_inputs()
        student = [x.requires_grad_() for x in inputs["student"]]
        teacher = inputs["teacher"]
        loss, entropy, count = function(
            student[0],
            teacher[0],
            student[1],
            teacher[1],
            inputs["mask"],
            0.3,
            items,
            student[2],
            teacher[2],
            0.5,
            2.0,
            1.5,
            3.0,
            temperature=0.8,
        )
        loss.backward()
        found.append([loss, entropy, count, *[x.grad for x in student]])
    torch.testing.assert_close(*found, rtol=2e-5, atol=1e-6)


def test_the_divergence_over_no_token_is_zero() -> None:
    inputs = divergence_inputs()
    hidden, weight, _ = (x.requires_grad_() for x in inputs["student"])
    teacher = inputs["teacher"]
    loss, entropy, count = _divergence_loss(
        hidden, teacher[0], weight, teacher[1], torch.zeros(2, 5), 0.5
    )
    loss.backward()
    assert (loss, entropy, count) == (0, 0, 0)
    assert weight.grad.abs().max() == 0
