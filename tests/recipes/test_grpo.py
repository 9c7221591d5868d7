import math

import pytest
import torch
from recipes.world import (
    C,
    World,
    check,
    make_world,
    run_engine,
    run_plain,
    surrogate,
    two_way_world,
)
from torch import Tensor

from sdkernels import recipes


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_the_clipped_surrogate(seed: int) -> None:
    check(recipes.get("grpo"), surrogate, make_world(seed=seed))


def test_without_old_logp_it_is_the_plain_policy_gradient() -> None:
    def formula(world: World) -> Tensor:
        logp = world.at_y(world.student_logp())
        return -world.tokens["adv"] * (logp - logp.detach()).exp()

    check(recipes.get("grpo"), formula, make_world().without("old_logp"))


def test_clips_are_settings() -> None:
    world = make_world(seed=3)
    recipe = recipes.get("grpo", clip_low=0.05, clip_high=0.6, dual_clip=None)
    check(recipe, lambda w: surrogate(w, 0.05, 0.6, None), world)


@pytest.mark.parametrize("ratio", [0.5, 0.79, 0.81, 1.27, 1.29, 2.9, 3.1])
@pytest.mark.parametrize("adv", [2.0, -2.0])
def test_where_the_gradient_stops(ratio: float, adv: float) -> None:
    """Positive advantages stop at 1.28, negative ones at 0.8 and, by the dual clip, at 3."""
    world = two_way_world(0.3, 0.3, adv=adv, old_logp=math.log(0.3 / ratio))
    loss, _, grad_VD = run_plain(recipes.get("grpo"), world)
    value = min(ratio, 1.28) if adv > 0 else min(max(ratio, 0.8), 3.0)
    assert loss.item() == pytest.approx(-adv * value)
    moves = ratio < 1.28 if adv > 0 else 0.8 < ratio < 3.0
    assert (grad_VD.abs().max() > 0) == moves
    if moves:  # descending raises the logit of a token with a positive advantage
        assert (grad_VD[0] < 0) == (adv > 0)


@pytest.mark.parametrize("form", ["exact", "k3"])
def test_the_penalty_is_kl_student_teacher(form: str) -> None:
    def formula(world: World) -> Tensor:
        log_s, log_t = world.student_logp(), world.teacher_logp()
        gap = world.at_y(log_t) - world.at_y(log_s)
        exact = (log_s.exp() * (log_s - log_t)).sum(-1)
        return surrogate(world) + 0.3 * (exact if form == "exact" else gap.exp() - gap - 1)

    check(recipes.get("grpo", kl_weight=0.3, kl_form=form), formula, make_world())


def test_k3_estimates_kl_student_teacher_without_bias() -> None:
    """Its mean over tokens drawn from S is KL(S||T), and not KL(T||S)."""
    recipe = recipes.get("grpo", kl_weight=1.0, kl_form="k3")
    mean = sum(
        p * run_plain(recipe, two_way_world(0.3, 0.6, y=y, adv=0.0))[0].item()
        for y, p in ((0, 0.3), (1, 0.7))
    )
    assert mean == pytest.approx(0.3 * math.log(0.3 / 0.6) + 0.7 * math.log(0.7 / 0.4))


def test_the_log_ratio_is_guarded() -> None:
    """RLSD, RLCSD and TRL have no guard: there, exp(25) and A < 0 made a loss of 1e9."""
    world = two_way_world(0.5, 0.5, adv=-1.0, old_logp=-90.0)
    loss, _, grad_VD = run_plain(recipes.get("grpo", dual_clip=None), world)
    assert loss.item() == pytest.approx(math.exp(20.0))
    assert grad_VD.abs().max() == 0


def test_no_advantage_no_gradient() -> None:
    world = make_world().having(adv=torch.zeros(12, dtype=torch.float64))
    loss, hidden, weight = run_engine(recipes.get("grpo"), world)
    assert loss == 0
    assert not hidden.any()
    assert not weight.any()


def test_the_teacher_is_needed_for_the_penalty_only() -> None:
    assert recipes.get("grpo").needs == {"rewards", "group", "old_logp"}
    assert recipes.get("grpo", kl_weight=0.1).needs == {"rewards", "group", "old_logp", "teacher"}


def test_the_reference_model_of_the_penalty_sees_the_bare_question() -> None:
    assert recipes.get("grpo").context is None
    assert recipes.get("grpo", kl_weight=0.1).context == ("none", {})


def test_the_sampled_penalty_of_a_banned_token_is_bounded() -> None:
    recipe = recipes.get("grpo", kl_weight=1.0, kl_form="k3")
    world = make_world().having(adv=torch.zeros(C, dtype=torch.float64))
    world.teacher_CV[torch.arange(C), world.y_C] = -1e4
    loss = run_engine(recipe, world)[0]
    bound = math.expm1(-20.0) + 20.0
    assert loss.item() == pytest.approx(bound * world.tokens["weight"].sum().item())
