import math

import pytest
import torch
from recipes.test_sdpo import jsd
from recipes.world import World, check, make_world, run_engine, run_plain, surrogate, two_way_world
from torch import Tensor

import sdkernels as sd
from sdkernels import recipes
from sdkernels.engine import TokenStats
from sdkernels.engine.stats import Tokens


def shaped(world: World, lam: float) -> World:
    """The world with A - lam phi(u), phi(u) = (log(1 + T/S) - log 2) / 2."""
    t = world.at_y(world.teacher_logp()).exp()
    s = world.at_y(world.student_logp()).detach().exp()
    return world.having(adv=world.tokens["adv"] - lam * 0.5 * ((1 + t / s) / 2).log())


@pytest.mark.parametrize("seed", [0, 1])
def test_the_formula(seed: int) -> None:
    def formula(world: World) -> Tensor:
        return surrogate(shaped(world, 0.1))

    check(recipes.get("antisd"), formula, make_world(seed=seed))


def test_settings_and_strength() -> None:
    def formula(world: World) -> Tensor:
        return surrogate(shaped(world, 0.6), dual=None)

    world = make_world(seed=2).having(strength=torch.full((12,), 0.3, dtype=torch.float64))
    check(recipes.get("antisd", lam=2.0, dual_clip=None, gated=False), formula, world)


@pytest.mark.parametrize("is_on", [True, False])
def test_the_gate_switches_it(is_on: bool) -> None:
    gate = sd.gates.Schmitt(warmup_steps=1)
    gate.update(2.0)
    assert gate.update(2.0 if is_on else 1.0) == is_on
    world = make_world()
    expected = run_engine(recipes.get("antisd" if is_on else "grpo"), world)
    got = run_engine(recipes.get("antisd"), world, gate=gate)
    torch.testing.assert_close(got, expected)
    always = run_engine(recipes.get("antisd", gated=False), world, gate=gate)
    torch.testing.assert_close(always, run_engine(recipes.get("antisd"), world))


def test_the_direction_for_the_logs_is_away_from_the_teacher() -> None:
    for gated, is_on, expected in ((True, 1.0, -1.0), (True, 0.0, 0.0), (False, 0.0, -1.0)):
        recipe = recipes.get("antisd", gated=gated)
        assert recipe.direction is not None
        stats = TokenStats({"teacher_logp": torch.zeros(2), "direction": torch.full((2,), is_on)})
        acted = recipe.direction(stats, Tokens({"signal": torch.tensor([1.0, 0.0])}))
        assert acted.tolist() == [expected, 0.0]


def test_on_average_it_ascends_the_jsd() -> None:
    """Weighted by S(y) it is minus the gradient of JSD(S, T): pinned in direction and size."""
    recipe = recipes.get("antisd", lam=1.0)
    mean = sum(
        p * run_plain(recipe, two_way_world(0.3, 0.6, y=y, adv=0.0))[2]
        for y, p in ((0, 0.3), (1, 0.7))
    )
    world = two_way_world(0.3, 0.6)
    divergence = jsd(world.student_logp().exp(), world.teacher_logp().exp(), 0.5).sum()
    (gradient,) = torch.autograd.grad(divergence, world.weight_VD)
    torch.testing.assert_close(mean, -gradient)


@pytest.mark.parametrize(("teacher", "pulls"), [(0.9, False), (0.1, True)])
def test_it_pushes_what_the_teacher_likes(teacher: float, pulls: bool) -> None:
    gradient = run_plain(recipes.get("antisd"), two_way_world(0.5, teacher, adv=0.0))[2]
    assert (gradient[0].item() < 0) == pulls


@pytest.mark.parametrize("teacher", [1e-300, 1e-3, 0.5, 1 - 1e-12])
def test_the_reward_is_bounded(teacher: float) -> None:
    """Reward of at most (log 2)/2; blame of at most 10, where the log-ratio is cut at 20."""
    loss = run_plain(recipes.get("antisd", lam=1.0), two_way_world(1e-30, teacher, adv=0.0))[0]
    assert -0.5 * math.log(2.0) <= loss.item() <= 10.0


def test_without_a_signal_it_is_grpo() -> None:
    world = make_world()
    silent = world.having(signal=torch.zeros(12))
    torch.testing.assert_close(
        run_plain(recipes.get("antisd"), silent), run_plain(recipes.get("grpo"), world)
    )


def test_what_a_trainer_has_to_know() -> None:
    recipe = recipes.get("antisd")
    assert recipe.needs == {"teacher", "rewards", "group", "old_logp", "gate"}
    assert recipe.gates == ("schmitt",)
    assert "gate" not in recipes.get("antisd", gated=False).needs
