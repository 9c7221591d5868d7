import math

import pytest
import torch
from recipes.world import World, check, make_world, run_plain, surrogate, two_way_world
from torch import Tensor

from sdkernels import recipes


def shaped(world: World, *, lam: float = 0.5, clip: float = 0.2, reference: str = "now") -> World:
    """The world with A ((1 - lam) + lam w), w = (T / S)^sign(A) in [1 - clip, 1 + clip]."""
    t = world.at_y(world.teacher_logp()).exp()
    s = world.at_y(world.student_logp()).detach().exp()
    if reference == "old":
        s = world.tokens["old_logp"].exp()
    advantages = []
    for adv, ratio in zip(world.tokens["adv"].tolist(), (t / s).tolist(), strict=True):
        w = ratio if adv > 0 else 1 / ratio
        advantages.append(adv * ((1 - lam) + lam * min(max(w, 1 - clip), 1 + clip)))
    return world.having(adv=torch.tensor(advantages, dtype=torch.float64))


def formula(world: World) -> Tensor:
    return surrogate(shaped(world))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_formula(seed: int) -> None:
    check(recipes.get("rlsd"), formula, make_world(seed=seed))


def test_settings() -> None:
    recipe = recipes.get("rlsd", lam=0.8, ratio_clip=0.6, evidence="old", dual_clip=None)
    check(
        recipe,
        lambda w: surrogate(shaped(w, lam=0.8, clip=0.6, reference="old"), dual=None),
        make_world(seed=4),
    )


def test_strength_scales_lam() -> None:
    world = make_world()
    check(
        recipes.get("rlsd"),
        lambda w: surrogate(shaped(w, lam=0.1)),
        world.having(strength=torch.full((12,), 0.2, dtype=torch.float64)),
    )


def test_lam_falls_to_0_in_50_steps() -> None:
    schedule = recipes.get("rlsd").schedule
    assert schedule is not None
    assert [schedule(step) for step in (0, 10, 50, 60)] == pytest.approx([1.0, 0.8, 0.0, 0.0])
    assert recipes.get("rlsd", decay_steps=None).schedule is None


@pytest.mark.parametrize("adv", [1.0, -1.0])
def test_a_token_the_teacher_prefers_gets_more_credit_and_less_blame(adv: float) -> None:
    """T(y) = 1.1 S(y): a push for y of 1.05 in a good rollout, against y of about .95 in a bad."""
    grpo = run_plain(recipes.get("grpo"), two_way_world(0.5, 0.55, adv=adv))[2]
    rlsd = run_plain(recipes.get("rlsd"), two_way_world(0.5, 0.55, adv=adv))[2]
    factor = 1.05 if adv > 0 else 0.5 + 0.5 / 1.1
    torch.testing.assert_close(rlsd, factor * grpo)
    assert (rlsd[0] < 0) == (adv > 0)


def test_no_signal_leaves_grpo() -> None:
    world = make_world()
    silent = world.having(signal=torch.zeros(12))
    for ours, theirs in zip(
        run_plain(recipes.get("rlsd"), silent), run_plain(recipes.get("grpo"), world), strict=True
    ):
        torch.testing.assert_close(ours, theirs)


def test_the_log_ratio_is_guarded() -> None:
    """Unguarded, exp(25 sign(A)) and A < 0 made a loss of 1e9."""
    world = two_way_world(0.5, 1e-40, adv=-1.0, old_logp=-90.0)
    loss, _, _ = run_plain(recipes.get("rlsd"), world)
    assert loss.item() == pytest.approx(1.1 * 3.0)  # dual clip
    assert math.isfinite(run_plain(recipes.get("rlsd", dual_clip=None), world)[0])
