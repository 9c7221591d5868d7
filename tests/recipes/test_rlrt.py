import pytest
import torch
from recipes.world import World, check, make_world, run_plain, surrogate, two_way_world
from torch import Tensor

from sdkernels import recipes


def shaped(world: World, *, lam: float, clip: float, everywhere: bool = False) -> World:
    """The world with A ((1 - lam) + lam w), w = (S / T)^sign(A) clipped, in correct rollouts."""
    t = world.at_y(world.teacher_logp()).exp()
    s = world.at_y(world.student_logp()).detach().exp()
    advantages = []
    for adv, ratio, right in zip(
        world.tokens["adv"].tolist(),
        (s / t).tolist(),
        world.tokens["success"].tolist(),
        strict=True,
    ):
        w = ratio if adv > 0 else 1 / ratio
        factor = (1 - lam) + lam * min(max(w, 1 - clip), 1 + clip)
        advantages.append(adv * factor if right or everywhere else adv)
    return world.having(adv=torch.tensor(advantages, dtype=torch.float64))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_formula(seed: int) -> None:
    def formula(world: World) -> Tensor:
        return surrogate(shaped(world, lam=0.5, clip=1.0))

    check(recipes.get("rlrt"), formula, make_world(seed=seed))


def test_settings() -> None:
    def formula(world: World) -> Tensor:
        return surrogate(shaped(world, lam=0.3, clip=0.2, everywhere=True))

    recipe = recipes.get("rlrt", lam=0.3, ratio_clip=0.2, rollouts="all")
    check(recipe, formula, make_world(seed=5))
    assert recipe.inputs == {"weight", "adv"}


@pytest.mark.parametrize("rollouts", ["correct", "all"])
@pytest.mark.parametrize("success", [0.0, 1.0])
def test_credit_goes_to_what_the_teacher_did_not_expect(success: float, rollouts: str) -> None:
    """The reverse of RLSD: S / T = .5 / .4 makes 1.125 A; wrong rollouts keep A."""
    world = two_way_world(0.5, 0.4, adv=1.0, success=success)
    grpo = run_plain(recipes.get("grpo"), world)[2]
    factor = 1.125 if success or rollouts == "all" else 1.0
    ours = run_plain(recipes.get("rlrt", rollouts=rollouts), world)[2]
    torch.testing.assert_close(ours, factor * grpo)


def test_a_token_the_teacher_is_sure_of_keeps_the_verifiers_part() -> None:
    """S / T near 0: half of A is left at lambda .5, and never less than nothing."""
    world = two_way_world(0.001, 0.999, adv=1.0, success=1.0)
    grpo = run_plain(recipes.get("grpo"), world)[2]
    torch.testing.assert_close(
        run_plain(recipes.get("rlrt"), world)[2], 0.5 * grpo, rtol=2e-3, atol=0
    )
