"""Numerics of top-k supports; which divergence a recipe takes is tested with the recipe."""

import math

import pytest
import torch
from torch import Tensor

import sdkernels as sd
from sdkernels.recipes.divergence import clipped_kl, divergence, engine_keywords


def topk_stats(student: Tensor, teacher: Tensor) -> sd.TokenStats:
    return sd.TokenStats({"topk_logp": student, "teacher_topk_logp": teacher})


def value(student: Tensor, teacher: Tensor, mixture: float, *, tail: bool = True) -> Tensor:
    return divergence(topk_stats(student, teacher), mixture, "student_topk", tail)


@pytest.mark.parametrize("tail_mass", [1e-3, 1e-6, 1e-9, 1e-12])
@pytest.mark.parametrize("mixture", [0.0, 0.5, 1.0])
def test_a_small_tail_keeps_its_value_and_its_gradient(tail_mass: float, mixture: float) -> None:
    """Published code floors the tail at 1e-7, in value and gradient; in float64 ours is exact."""
    logp = torch.log1p(-torch.tensor([[tail_mass]], dtype=torch.float64)).requires_grad_()
    teacher = torch.tensor([[0.5]], dtype=torch.float64).log()
    got = value(logp, teacher, mixture)
    s, t = torch.tensor([1 - tail_mass, tail_mass], dtype=torch.float64), torch.tensor([0.5, 0.5])
    m = mixture * t + (1 - mixture) * s
    expected = {
        0.0: (t * (t / s).log()).sum(),
        0.5: (0.5 * t * (t / m).log() + 0.5 * s * (s / m).log()).sum(),
        1.0: (s * (s / t).log()).sum(),
    }[mixture]
    assert got.item() == pytest.approx(expected.item(), rel=1e-4)
    gradient = torch.autograd.grad(got.sum(), logp)[0].item()
    # d tail / d log p = -p / (1 - p) on the log of the tail.
    tail_log_gradient = {
        0.0: -0.5,
        0.5: 0.5 * tail_mass * math.log(tail_mass / (0.25 + 0.5 * tail_mass)),
        1.0: tail_mass * (math.log(tail_mass / 0.5) + 1),
    }[mixture]
    head_log_gradient = {
        0.0: -0.5,
        0.5: 0.5 * (1 - tail_mass) * math.log((1 - tail_mass) / (0.75 - 0.5 * tail_mass)),
        1.0: (1 - tail_mass) * (math.log((1 - tail_mass) / 0.5) + 1),
    }[mixture]
    expected_gradient = head_log_gradient - tail_log_gradient * (1 - tail_mass) / tail_mass
    assert gradient == pytest.approx(expected_gradient, rel=2e-3)


@pytest.mark.parametrize("mixture", [0.0, 0.5, 1.0])
def test_a_float32_tail_that_rounds_to_nothing_stays_finite(mixture: float) -> None:
    """The student is sure beyond float32: its list sums to 1, and KL(T||S) must not be infinite."""
    student = torch.tensor([[0.0, -30.0]], requires_grad=True)
    teacher = torch.tensor([[0.6, 0.3]]).log()
    loss = value(student, teacher, mixture)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(torch.autograd.grad(loss.sum(), student)[0]).all()
    if mixture == 0.0:
        floor = math.log(torch.finfo(torch.float32).eps)
        expected = 0.6 * math.log(0.6) + 0.3 * (math.log(0.3) + 30) + 0.1 * (math.log(0.1) - floor)
        assert loss.item() == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("mixture", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("tail", [True, False])
def test_ids_banned_on_both_sides_change_nothing(mixture: float, tail: bool) -> None:
    """SDPO's code gives NaN there."""
    random = torch.Generator().manual_seed(1)
    student, teacher = torch.randn(2, 4, 8, generator=random, dtype=torch.float64)
    student, teacher = student.log_softmax(-1)[:, :5], teacher.log_softmax(-1)[:, :5]
    banned = torch.full((4, 2), -math.inf, dtype=torch.float64)
    short = student.clone().requires_grad_()
    long = torch.cat([student, banned], -1).requires_grad_()
    expected = value(short, teacher, mixture, tail=tail)
    got = value(long, torch.cat([teacher, banned], -1), mixture, tail=tail)
    torch.testing.assert_close(got, expected)
    (g_short,) = torch.autograd.grad(expected.sum(), short)
    (g_long,) = torch.autograd.grad(got.sum(), long)
    torch.testing.assert_close(g_long, torch.cat([g_short, 0 * g_short[:, :2]], -1))


@pytest.mark.parametrize("mixture", [0.0, 0.5])
def test_an_id_that_only_the_teacher_bans(mixture: float) -> None:
    student = torch.tensor([[0.5, 0.2]], dtype=torch.float64).log().requires_grad_()
    teacher = torch.tensor([[0.7, 0.0]], dtype=torch.float64).log()
    loss = value(student, teacher, mixture)
    assert torch.isfinite(loss).all()
    assert torch.isfinite(torch.autograd.grad(loss.sum(), student)[0]).all()


def test_support_without_tail_is_renormalised() -> None:
    """S = (.4, .1 | .5) and T = (.1, .1 | .8) become (.8, .2) and (.5, .5)."""
    student = torch.tensor([[0.4, 0.1]], dtype=torch.float64).log()
    teacher = torch.tensor([[0.1, 0.1]], dtype=torch.float64).log()
    got = value(student, teacher, 0.0, tail=False).item()
    assert got == pytest.approx(0.5 * math.log(0.5 / 0.8) + 0.5 * math.log(0.5 / 0.2))
    with_tail = value(student, teacher, 0.0, tail=True).item()
    expected = 0.1 * math.log(0.1 / 0.4) + 0.8 * math.log(0.8 / 0.5)
    assert with_tail == pytest.approx(expected)


def test_the_entry_clip_reaches_the_tail_bucket() -> None:
    """S = (.4 | .6), T = (.9 | .1): .9 log(2.25) = .730 is clipped, .1 log(1/6) is not."""
    stats = topk_stats(
        torch.tensor([[0.4]], dtype=torch.float64).log(),
        torch.tensor([[0.9]], dtype=torch.float64).log(),
    )
    got = clipped_kl(stats, 0.05, "teacher_topk", True).item()
    assert got == pytest.approx(0.05 + 0.1 * math.log(0.1 / 0.6))


def test_engine_keywords() -> None:
    assert engine_keywords(0.0) == engine_keywords(1.0) == {}
    assert engine_keywords(0.3) == {"jsd_beta": 0.3}
    assert engine_keywords(0.3, "teacher_topk", 8) == {"topk": 8, "topk_of": "teacher"}
    assert engine_keywords(0.3, "student_topk", 8) == {"topk": 8, "topk_of": "student"}
    assert engine_keywords(0.3, "teacher_topk", None) == {}


def test_a_top_k_teacher_brings_its_own_ids() -> None:
    from recipes.world import make_world

    from sdkernels import recipes

    world = make_world()
    logp, ids = world.teacher_logp().topk(6)
    asked = recipes.get("sdft", support="teacher_topk", topk=6, tail=True)
    brought = recipes.get("sdft", support="teacher_topk", topk=None, tail=True)
    losses = [
        sd.token_loss(
            world.hidden_CD,
            world.weight_VD,
            recipe.loss_fn,
            teacher=teacher,
            tokens=world.tokens,
            **recipe.engine,
        )[0]
        for recipe, teacher in (
            (asked, sd.LogitsTeacher(world.teacher_CV)),
            (brought, sd.TopKTeacher(ids, logp)),
        )
    ]
    torch.testing.assert_close(losses[0], losses[1])
