import math

import pytest
import torch
from recipes.world import World, check, make_world, plain_stats, run_plain, surrogate, two_way_world
from torch import Tensor

import sdkernels as sd
from sdkernels import recipes
from sdkernels.engine.stats import Tokens


def extras(world: World, *, scale: float, tau: float, bound: float) -> list[float]:
    plus = world.at_y(world.teacher_logp()).tolist()
    minus = world.tokens["second_teacher_logp"].tolist()
    return [
        min(max(scale * math.tanh((p - q) / tau), -bound), bound) if math.isfinite(q) else math.nan
        for p, q in zip(plus, minus, strict=True)
    ]


def losses(world: World, *, scale: float, tau: float, bound: float) -> tuple[Tensor, list[float]]:
    """The surrogate with A + r, r on A's side of 0, and r (NaN: dropped)."""
    extra = extras(world, scale=scale, tau=tau, bound=bound)
    advantages = []
    for adv, r in zip(world.tokens["adv"].tolist(), extra, strict=True):
        moved = adv + (0 if math.isnan(r) else r)
        advantages.append(max(moved, 0) if adv > 0 else min(moved, 0) if adv < 0 else 0.0)
    shaped = world.having(adv=torch.tensor(advantages, dtype=torch.float64))
    return surrogate(shaped), extra


@pytest.mark.parametrize("tau", [0.02, 1.5])
def test_one_mean_without_the_share_of_selected_tokens(tau: float) -> None:
    def formula(world: World) -> Tensor:
        loss, extra = losses(world, scale=0.5, tau=tau, bound=2.0)
        factor = [0 if math.isnan(r) else 0.3 if abs(r) > 0.3 else 1 for r in extra]
        return loss * torch.tensor(factor, dtype=torch.float64)

    check(recipes.get("rlcsd", tau=tau, eta=0.3, threshold=0.3), formula, make_world())


def test_two_means_with_it() -> None:
    """mean over unselected + eta mean over selected tokens, of those that have a contrast."""
    world = make_world(seed=1)
    there = torch.isfinite(world.tokens["second_teacher_logp"])
    world = world.having(weight=there / there.sum().double())
    recipe = recipes.get("rlcsd", tau=2.0, eta=0.7, threshold=0.8, lam=0.8, beta=1.5, bound=0.9)
    assert recipe.batch_quantity is not None
    teacher = sd.TokenStats({"teacher_logp": plain_stats(world, {}).teacher_logp})
    value, counts = recipe.batch_quantity(teacher, Tokens(world.tokens))
    share = value[counts].mean()
    assert 0 < share < 1

    def formula(w: World) -> Tensor:
        loss, extra = losses(w, scale=1.2, tau=2.0, bound=0.9)
        selected = [abs(r) > 0.8 for r in extra if not math.isnan(r)]
        num, chosen = len(selected), sum(selected)
        factor = [
            0.0 if math.isnan(r) else 0.7 * num / chosen if abs(r) > 0.8 else num / (num - chosen)
            for r in extra
        ]
        return loss * torch.tensor(factor, dtype=torch.float64)

    check(recipe, formula, world.having(batch_mean=share.expand(12)))


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_an_empty_side_has_mean_0(share: float) -> None:
    world = two_way_world(
        0.5,
        0.4,
        adv=1.0,
        batch_mean=share,
        second_teacher_logp=math.log(0.4 if share == 0 else 0.1),
    )
    loss = run_plain(recipes.get("rlcsd"), world)[0].item()
    assert loss == pytest.approx(-1.0 if share == 0 else -1.5)


@pytest.mark.parametrize(
    ("adv", "second", "expected"),
    [
        (1.0, 0.1, 1.5),  # the correct siblings like it more: pulled up by lambda
        (1.0, 0.8, 0.5),
        (-1.0, 0.1, -0.5),
        (-1.0, 0.8, -1.5),
        (0.2, 0.8, 0.0),  # does not cross 0
        (-0.2, 0.1, 0.0),
        (0.0, 0.1, 0.0),
    ],
)
def test_by_hand(adv: float, second: float, expected: float) -> None:
    world = two_way_world(0.5, 0.4, adv=adv, second_teacher_logp=math.log(second))
    assert run_plain(recipes.get("rlcsd"), world)[0].item() == pytest.approx(-expected)


@pytest.mark.parametrize("missing", [math.nan, -math.inf])
def test_a_sequence_without_a_wrong_context_is_dropped(missing: float) -> None:
    world = two_way_world(0.5, 0.4, adv=1.0, second_teacher_logp=missing)
    for part in run_plain(recipes.get("rlcsd"), world):
        assert not part.any()
    assert not recipes.get("rlcsd").anchored


def test_a_batch_of_one_kind_of_token() -> None:
    recipe = recipes.get("rlcsd")
    assert recipe.batch_quantity is not None
    world = two_way_world(0.5, 0.4, adv=1.0, second_teacher_logp=math.log(0.4))
    value, counts = recipe.batch_quantity(
        sd.TokenStats(plain_stats(world, {}).__dict__), Tokens(world.tokens)
    )
    assert (value.tolist(), counts.tolist()) == ([0.0], [True])


def test_tokens_without_any_contrast_are_not_selected() -> None:
    """threshold=0 takes all tokens that move at all."""
    world = two_way_world(0.5, 0.9, adv=1.0, batch_mean=0.5)
    world.tokens["second_teacher_logp"] = world.at_y(world.teacher_logp())
    unmoved, weighed_up = (
        run_plain(recipes.get("rlcsd", threshold=0.0, eta=eta), world)[0] for eta in (1.0, 5.0)
    )
    assert unmoved == weighed_up != 0
