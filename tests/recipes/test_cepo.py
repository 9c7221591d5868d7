import math

import pytest
import torch
from recipes.world import World, check, make_world, run_plain, surrogate, two_way_world
from torch import Tensor

from sdkernels import recipes


def shaped(world: World, *, lam: float = 0.5, clip: float = 0.5) -> World:
    """The world with A ((1 - lam) + lam w), w = (T+ / T-)^sign(A) clipped; A without a T-."""
    plus = world.at_y(world.teacher_logp())
    advantages = []
    for adv, p, q in zip(
        world.tokens["adv"].tolist(),
        plus.tolist(),
        world.tokens["second_teacher_logp"].tolist(),
        strict=True,
    ):
        w = 1.0
        if math.isfinite(q):
            w = math.exp(p - q) if adv > 0 else math.exp(q - p)
        advantages.append(adv * ((1 - lam) + lam * min(max(w, 1 - clip), 1 + clip)))
    return world.having(adv=torch.tensor(advantages, dtype=torch.float64))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_formula(seed: int) -> None:
    def formula(world: World) -> Tensor:
        return surrogate(shaped(world))

    check(recipes.get("cepo"), formula, make_world(seed=seed))


def test_settings_and_strength() -> None:
    def formula(world: World) -> Tensor:
        return surrogate(shaped(world, lam=0.2, clip=0.9), low=0.1)

    world = make_world(seed=2).having(strength=torch.full((12,), 0.25, dtype=torch.float64))
    check(recipes.get("cepo", lam=0.8, ratio_clip=0.9, clip_low=0.1), formula, world)


@pytest.mark.parametrize("adv", [1.0, -1.0])
def test_evidence_for_the_right_answer_raises_credit_and_lowers_blame(adv: float) -> None:
    world = two_way_world(0.5, 0.4, adv=adv, second_teacher_logp=math.log(0.32))
    grpo = run_plain(recipes.get("grpo"), world)[2]
    factor = 0.5 + 0.5 * (1.25 if adv > 0 else 0.8)
    torch.testing.assert_close(run_plain(recipes.get("cepo"), world)[2], factor * grpo)


def test_the_student_is_no_part_of_the_contrast() -> None:
    """A student that disagrees with both teachers changes nothing in the advantage."""
    values = [
        run_plain(
            recipes.get("cepo"),
            two_way_world(p, 0.4, adv=1.0, second_teacher_logp=math.log(0.32)),
        )[0].item()
        for p in (0.1, 0.5, 0.9)
    ]
    assert values == pytest.approx([-1.125] * 3)


@pytest.mark.parametrize("missing", [math.nan, -math.inf])
def test_without_a_rejected_answer_it_is_grpo(missing: float) -> None:
    world = two_way_world(0.5, 0.4, adv=1.0, second_teacher_logp=missing)
    assert torch.equal(
        run_plain(recipes.get("cepo"), world)[2], run_plain(recipes.get("grpo"), world)[2]
    )


def test_what_a_trainer_has_to_know() -> None:
    recipe = recipes.get("cepo")
    assert recipe.needs == {"teacher", "rewards", "group", "old_logp"}
    assert recipe.inputs == {"weight", "adv", "second_teacher_logp"}
    assert recipe.anchored
    assert recipe.context == ("contrastive", {"show": "answer", "negatives": 1})
    assert recipe.schedule is not None
    assert recipe.schedule(5) == pytest.approx(0.8)
