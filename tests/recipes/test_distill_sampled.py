import math

import pytest
import torch
from recipes.world import (
    World,
    check,
    make_world,
    run_engine,
    run_plain,
    teacher_is_student,
    two_way_world,
)
from torch import Tensor

from sdkernels import recipes


def formula(world: World, coef: float = 1.0) -> Tensor:
    """-(S / S_old) coef (log T - log S_old)."""
    logp, teacher_logp = world.at_y(world.student_logp()), world.at_y(world.teacher_logp())
    old = world.tokens.get("old_logp", logp.detach())
    return -(logp - old).exp() * coef * (teacher_logp - old)


def test_it_is_importance_sampling_with_the_samplers_gap() -> None:
    check(recipes.get("distill_sampled"), formula, make_world())


def test_on_policy() -> None:
    """Then it is -sg(gap) log S in the gradient, the form OPSD's paper compares with."""
    world = make_world().without("old_logp")
    check(recipes.get("distill_sampled", coef=0.7), lambda w: formula(w, 0.7), world)

    def surrogate(w: World) -> Tensor:
        logp = w.at_y(w.student_logp())
        return -(w.at_y(w.teacher_logp()) - logp).detach() * logp

    expected = torch.autograd.grad(
        (world.tokens["weight"] * surrogate(world)).sum(), world.hidden_CD
    )
    got = run_plain(recipes.get("distill_sampled"), world)[1]
    torch.testing.assert_close(got, expected[0])


@pytest.mark.parametrize(("teacher_p", "sign"), [(0.8, -1), (0.2, 1)])
def test_a_token_the_teacher_likes_better_goes_up(teacher_p: float, sign: int) -> None:
    grad_VD = run_plain(recipes.get("distill_sampled"), two_way_world(0.5, teacher_p))[2]
    assert grad_VD[0].sign() == sign
    assert grad_VD[0].item() == pytest.approx(-math.log(teacher_p / 0.5) * 0.5)


def test_on_average_it_descends_kl_student_teacher() -> None:
    recipe = recipes.get("distill_sampled")
    mean = sum(
        p * run_plain(recipe, two_way_world(0.3, 0.6, y=y))[2] for y, p in ((0, 0.3), (1, 0.7))
    )
    expected = run_plain(recipes.get("gkd", beta=1), two_way_world(0.3, 0.6))[2]
    torch.testing.assert_close(mean, expected)


@pytest.mark.parametrize("teacher_p", [1e-30, 0.0])
@pytest.mark.parametrize("clip", [5.0, 20.0])
def test_a_banned_token_is_pushed_by_a_bounded_amount(teacher_p: float, clip: float) -> None:
    recipe = recipes.get("distill_sampled", gap_clip=clip)
    loss, _, grad_VD = run_plain(recipe, two_way_world(0.5, teacher_p))
    assert loss.item() == pytest.approx(clip)
    assert grad_VD[0].item() == pytest.approx(0.5 * clip)


def test_step_0_is_exactly_0() -> None:
    world = teacher_is_student(make_world().without("old_logp"))
    for part in run_engine(recipes.get("distill_sampled"), world):
        assert not part.any()
