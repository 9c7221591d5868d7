"""`LigerFusedLinearCrossEntropyLoss` against the formula on float64 logits; Liger's own is Triton.

Where torch has the option (weights, smoothing, reduction), `F.cross_entropy` checks the formula.
"""

from __future__ import annotations

import inspect
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss as Theirs
from torch import Tensor

from sdkernels.integrations.liger import CrossEntropyOutput
from sdkernels.integrations.liger import LigerFusedLinearCrossEntropyLoss as Ours

T, D, V = 13, 6, 17


def problem() -> dict[str, Tensor]:
    gen = torch.Generator().manual_seed(5)
    target = torch.randint(V, (T,), generator=gen)
    target[1::4] = -100
    return {
        "lin_weight": torch.randn(V, D, generator=gen).double().requires_grad_(),
        "_input": torch.randn(T, D, generator=gen).double().requires_grad_(),
        "target": target,
        "bias": torch.randn(V, generator=gen).double().requires_grad_(),
    }


def reference(settings: dict[str, Any], inputs: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
    """(loss, z-loss), as the issue of each option defines them, from all logits."""
    logits = inputs["_input"] @ inputs["lin_weight"].T + inputs["bias"]
    cap = settings.get("softcap")
    if cap is not None:
        logits = cap * (logits / cap).tanh()
    target, ignored = inputs["target"], inputs["target"] == -100
    class_weight = settings.get("ce_weight")
    loss = F.cross_entropy(
        logits,
        target,
        weight=class_weight,
        label_smoothing=settings.get("label_smoothing", 0.0),
        reduction="none",
    )
    z = settings.get("lse_square_scale", 0.0) * logits.logsumexp(-1) ** 2
    if settings.get("reduction", "mean") == "mean":
        chosen = torch.ones(T).double() if class_weight is None else class_weight[target.clamp(0)]
        loss = loss / chosen[~ignored].sum()
        z = z / (~ignored).sum()
    z = z.masked_fill(ignored, 0)
    loss = loss + z
    if settings.get("use_token_scaling"):
        own = logits.softmax(-1).gather(-1, target.clamp(0)[:, None]).squeeze(-1).detach()
        loss, z = loss * own, z * own
    if settings.get("reduction") == "none":
        return loss, z
    return loss.sum(), z.sum()


WEIGHT = torch.linspace(0.1, 2.0, V).double()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"softcap": 1.5},
        {"label_smoothing": 0.2},
        {"ce_weight": WEIGHT},
        {"ce_weight": WEIGHT, "label_smoothing": 0.3, "lse_square_scale": 0.01},
        {"lse_square_scale": 0.1, "use_token_scaling": True, "label_smoothing": 0.1},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_against_logits(settings: dict[str, Any], reduction: str) -> None:
    settings = settings | {"reduction": reduction}
    ours, theirs = problem(), problem()
    loss = Ours(**settings)(**ours)
    expected, _ = reference(settings, theirs)
    torch.testing.assert_close(loss, expected)
    upstream = torch.linspace(-1, 2, T).double() if reduction == "none" else torch.tensor(0.7)
    (loss * upstream).sum().backward()
    (expected * upstream).sum().backward()
    for name in ("lin_weight", "_input", "bias"):
        torch.testing.assert_close(ours[name].grad, theirs[name].grad, msg=name)


def test_the_mean_is_torch_s() -> None:
    """The reference above divides by itself; torch's own mean checks that."""
    inputs = problem()
    logits = inputs["_input"] @ inputs["lin_weight"].T + inputs["bias"]
    options: dict[str, Any] = {"label_smoothing": 0.3}
    expected = F.cross_entropy(logits, inputs["target"], weight=WEIGHT, **options)
    torch.testing.assert_close(Ours(ce_weight=WEIGHT, **options)(**inputs), expected)


@pytest.mark.parametrize("scaled", [False, True], ids=["", "scaled"])
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_other_outputs(reduction: str, scaled: bool) -> None:
    settings: dict[str, Any] = {
        "lse_square_scale": 0.1,
        "reduction": reduction,
        "use_token_scaling": scaled,
    }
    inputs = problem()
    logits = inputs["_input"] @ inputs["lin_weight"].T + inputs["bias"]
    kept = inputs["target"] != -100
    best = logits.argmax(-1).masked_fill(~kept, -1)
    hits = kept & (torch.arange(T) % 2 == 0)
    inputs["target"] = torch.where(hits, best, inputs["target"])
    found = Ours(
        return_z_loss=True, return_token_accuracy=True, return_predicted_tokens=True, **settings
    )(**inputs)
    assert isinstance(found, CrossEntropyOutput)
    loss, z = reference(settings, inputs)
    torch.testing.assert_close(found.loss, loss)
    torch.testing.assert_close(found.z_loss, z.detach())
    assert not found.z_loss.requires_grad
    assert found.predicted_tokens.equal(best)
    assert 0 < hits.sum() < kept.sum() < T
    expected = hits.float() if reduction == "none" else hits.sum() / kept.sum()
    torch.testing.assert_close(found.token_accuracy, expected)


def test_outputs_that_were_not_asked_for_are_none() -> None:
    found = Ours(return_z_loss=True)(**problem())
    assert found.token_accuracy is None
    assert found.predicted_tokens is None
    assert isinstance(Ours()(**problem()), Tensor)


@pytest.mark.parametrize("settings", [{}, {"label_smoothing": 0.1, "ce_weight": WEIGHT}])
def test_no_label_gives_zero(settings: dict[str, Any]) -> None:
    inputs = problem()
    inputs["target"] = torch.full((T,), -100)
    loss = Ours(**settings)(**inputs)
    loss.backward()
    assert loss == 0
    assert inputs["lin_weight"].grad.abs().max() == 0
    assert Ours(return_token_accuracy=True, **settings)(**inputs).token_accuracy == 0


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"label_smoothing": 0.2},
        {"label_smoothing": 0.2, "ce_weight": WEIGHT, "use_token_scaling": True},
    ],
    ids=lambda settings: " ".join(settings),
)
def test_left_out_tokens_may_hold_anything(settings: dict[str, Any], reduction: str) -> None:
    upstream = torch.linspace(-1, 2, T).double() if reduction == "none" else torch.tensor(0.7)
    found = []
    for held in (0.0, torch.nan, torch.inf):
        inputs = problem()
        with torch.no_grad():
            inputs["_input"][inputs["target"] == -100] = held
        loss = Ours(**settings, reduction=reduction)(**inputs)
        (loss * upstream).sum().backward()
        found.append([loss, *(inputs[name].grad for name in ("lin_weight", "_input", "bias"))])
    torch.testing.assert_close(found[1], found[0])
    torch.testing.assert_close(found[2], found[0])


def test_another_label_that_is_left_out() -> None:
    inputs = problem()
    expected = Ours()(**inputs)
    inputs["target"] = inputs["target"].masked_fill(inputs["target"] == -100, V + 3)
    torch.testing.assert_close(Ours(ignore_index=V + 3)(**inputs), expected)


def test_small_class_weights_are_divided_by_their_sum() -> None:
    settings = {"ce_weight": 0.01 * WEIGHT}
    torch.testing.assert_close(Ours(**settings)(**problem()), reference(settings, problem())[0])


@pytest.mark.parametrize("class_weight", [None, WEIGHT.float()], ids=["plain", "weighted"])
def test_smoothing_in_bfloat16(class_weight: torch.Tensor | None) -> None:
    inputs = {
        name: value.detach().bfloat16() if value.is_floating_point() else value
        for name, value in problem().items()
    }
    exact = {
        name: value.double() if value.is_floating_point() else value
        for name, value in inputs.items()
    }
    settings = {"label_smoothing": 0.3, "ce_weight": class_weight}
    loss = Ours(**settings)(**inputs)
    wide = None if class_weight is None else class_weight.double()
    expected, _ = reference(settings | {"ce_weight": wide}, exact)
    assert loss.dtype == torch.float32
    assert loss.item() == pytest.approx(expected.item(), rel=2e-2)


def test_signatures_are_liger_s() -> None:
    for name in ("__init__", "forward"):
        ours, theirs = (inspect.signature(getattr(cls, name)) for cls in (Ours, Theirs))
        assert [(p.name, p.default) for p in ours.parameters.values()] == [
            (p.name, p.default) for p in theirs.parameters.values()
        ]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"label_smoothing": 1.5}, "label_smoothing=1.5"),
        ({"reduction": "batchmean"}, "reduction='batchmean'"),
        ({"label_smoothing": 0.1, "softcap": 3.0}, "sum of capped logits"),
        ({"accum_dtype": torch.bfloat16}, "accum_dtype=torch.bfloat16"),
    ],
)
def test_bad_settings(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Ours(**settings)


def test_a_class_weight_of_another_length_is_refused() -> None:
    with pytest.raises(ValueError, match=r"ce_weight: expected shape \[V\] = \[17\], got \[3\]"):
        Ours(ce_weight=torch.ones(3))(**problem())
