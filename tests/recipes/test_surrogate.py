import math

import pytest
import torch
from torch import Tensor

import sdkernels as sd
from sdkernels.engine.stats import Tokens
from sdkernels.recipes import surrogate


def one(value: float) -> Tensor:
    return torch.tensor([value], dtype=torch.float64)


@pytest.mark.parametrize(
    ("logp", "old", "log_ratio"), [(-1.0, -2.0, 1.0), (-1.0, -90.0, 20.0), (-90.0, -1.0, -20.0)]
)
def test_the_ratio_is_now_over_then_within_its_guard(
    logp: float, old: float, log_ratio: float
) -> None:
    now = one(logp).requires_grad_()
    ratio = surrogate.policy_ratio(now, one(old))
    assert ratio.item() == pytest.approx(math.exp(log_ratio))
    (gradient,) = torch.autograd.grad(ratio.sum(), now)
    assert gradient.item() == (pytest.approx(ratio.item()) if abs(log_ratio) < 20 else 0.0)


def test_the_truncated_weight_is_a_constant() -> None:
    logp = one(-1.0).requires_grad_()
    assert not surrogate.truncated_weight(logp, one(-1.5), 2.0).requires_grad


@pytest.mark.parametrize(("teacher", "expected"), [(-1.0, 2.0), (-5.0, -2.0), (-math.inf, -20.0)])
def test_the_gap_is_teacher_minus_student(teacher: float, expected: float) -> None:
    logp = one(-3.0).requires_grad_()
    stats = sd.TokenStats({"logp": logp, "teacher_logp": one(teacher)})
    gap = surrogate.sampled_gap(stats, logp)
    assert gap.item() == expected
    assert not gap.requires_grad
    assert surrogate.sampled_gap(stats, logp, 1.5).item() == math.copysign(1.5, expected)


def test_the_surrogate_is_pessimistic() -> None:
    """Of the clipped and the unclipped objective it takes the lower one."""
    random = torch.Generator().manual_seed(0)
    logp, old, adv = torch.randn(3, 200, generator=random, dtype=torch.float64)
    loss = surrogate.clipped_surrogate(logp, old, adv, clip_low=0.2, clip_high=0.28, dual_clip=None)
    ratio = (logp - old).exp()
    assert bool((loss >= -adv * ratio - 1e-15).all())
    assert bool((loss >= -adv * ratio.clamp(0.8, 1.28) - 1e-15).all())


def test_the_dual_clip_bounds_a_push() -> None:
    loss = surrogate.clipped_surrogate(
        one(0.0), one(-15.0), one(-2.0), clip_low=0.2, clip_high=0.28, dual_clip=3.0
    )
    assert loss.item() == 6.0


@pytest.mark.parametrize("old", [one(-2.0), None])
def test_the_policy_loss_compares_with_the_policy_that_sampled(old: Tensor | None) -> None:
    """Without `old_logp` that is the current one: the ratio is 1, its gradient is not 0."""
    logp = one(-1.9).requires_grad_()
    tok = Tokens({} if old is None else {"old_logp": old})
    clip = {"clip_low": 0.2, "clip_high": 0.28, "dual_clip": 3.0}
    loss = surrogate.policy_loss(sd.TokenStats({"logp": logp}), tok, one(1.5), **clip)
    ratio = math.exp(0.1) if old is not None else 1.0
    assert loss.item() == pytest.approx(-1.5 * ratio)
    (gradient,) = torch.autograd.grad(loss.sum(), logp)
    assert gradient.item() == pytest.approx(-1.5 * ratio)
