"""`LigerFusedLinearJSDLoss` against Liger's, uncompiled on CPU."""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss as Theirs

from sdkernels.integrations.liger import LigerFusedLinearJSDLoss as Ours

T, D, D_TEACHER, V = 11, 8, 6, 29


def problem(*, bias: bool) -> dict[str, torch.Tensor]:
    gen = torch.Generator().manual_seed(2)
    labels = torch.randint(V, (T,), generator=gen)
    labels[::3] = -100
    inputs = {
        "student_input": torch.randn(T, D, generator=gen),
        "student_weight": torch.randn(V, D, generator=gen),
        "teacher_input": torch.randn(T, D_TEACHER, generator=gen),
        "teacher_weight": torch.randn(V, D_TEACHER, generator=gen),
        "true_labels": labels,
    }
    if bias:
        inputs["student_bias"] = torch.randn(V, generator=gen)
        inputs["teacher_bias"] = torch.randn(V, generator=gen)
    return inputs


def run(cls: Any, settings: dict[str, Any], inputs: dict[str, torch.Tensor]) -> list[Any]:
    inputs = dict(inputs)
    trained = [k for k in ("student_input", "student_weight", "student_bias") if k in inputs]
    for name in trained:
        inputs[name] = inputs[name].clone().requires_grad_()
    out = cls(compiled=False, **settings)(**inputs)
    parts = list(out) if isinstance(out, tuple) else [out]
    (0.5 * parts[0]).backward()
    return [*(part.detach() for part in parts), *(inputs[name].grad for name in trained)]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"beta": 0.0, "weight_hard_loss": 0.0, "weight_soft_loss": 1.0},
        {"beta": 1.0, "weight_hard_loss": 0.3, "chunk_size": 3},
        {"beta": 0.2, "temperature": 2.0},
        {"temperature": 0.5, "weight_hard_loss": 0.0},
        {"return_soft_hard_loss": True, "weight_hard_loss": 0.0},
        {"return_soft_hard_loss": True, "temperature": 2.0, "ignore_index": 5},
    ],
    ids=lambda settings: " ".join(f"{k}={v}" for k, v in settings.items()),
)
@pytest.mark.parametrize("bias", [False, True], ids=["", "bias"])
def test_against_liger(settings: dict[str, Any], bias: bool) -> None:
    inputs = problem(bias=bias)
    if "ignore_index" in settings:
        inputs["true_labels"] = inputs["true_labels"].masked_fill(
            inputs["true_labels"] == -100, settings["ignore_index"]
        )
    torch.testing.assert_close(
        run(Ours, settings, inputs), run(Theirs, settings, inputs), rtol=2e-5, atol=2e-6
    )


def test_signatures_are_liger_s() -> None:
    for name in ("__init__", "forward"):
        ours, theirs = (inspect.signature(getattr(cls, name)) for cls in (Ours, Theirs))
        assert [(p.name, p.default) for p in ours.parameters.values()] == [
            (p.name, p.default) for p in theirs.parameters.values()
        ]


def test_no_label_gives_zero() -> None:
    inputs = problem(bias=False)
    inputs["true_labels"] = torch.full((T,), -100)
    assert [float(part.abs().max()) for part in run(Ours, {}, inputs)] == [0.0, 0.0, 0.0]


def test_a_teacher_that_requires_grad_gets_none() -> None:
    inputs = problem(bias=True)
    for name, value in inputs.items():
        if name != "true_labels":
            value.requires_grad_()
    Ours()(**inputs).backward()
    assert inputs["student_input"].grad.abs().max() > 0
    assert all(inputs[f"teacher_{name}"].grad is None for name in ("input", "weight", "bias"))


def test_different_vocabularies_are_refused() -> None:
    """Liger pads the student's logits with 0, which may outweigh all real tokens."""
    inputs = problem(bias=False)
    inputs["teacher_weight"] = torch.randn(V + 3, D_TEACHER)
    with pytest.raises(ValueError, match="valid_vocab"):
        run(Ours, {}, inputs)
