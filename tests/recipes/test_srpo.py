import math

import pytest
import torch
from recipes.test_sdpo import jsd, on_support, weight
from recipes.world import (
    C,
    World,
    check,
    make_world,
    plain_stats,
    run_engine,
    run_plain,
    surrogate,
    two_way_world,
)
from torch import Tensor

import sdkernels as sd
from sdkernels import recipes
from sdkernels.engine.stats import Tokens


def routed(world: World, pulled: Tensor, *, by_advantage: bool = False) -> Tensor:
    """GRPO's loss for correct tokens, `pulled` for the others, one after the other."""
    rewarded = surrogate(world)
    correct = (
        (world.tokens["adv"] > 0).tolist() if by_advantage else world.tokens["success"].tolist()
    )
    parts = zip(correct, rewarded, pulled, strict=True)
    return torch.stack([r if right else p for right, r, p in parts])


def certainty(world: World, beta: float) -> Tensor:
    t = world.teacher_logp().exp()
    return torch.exp(beta * (t * t.log()).sum(-1))


@pytest.mark.parametrize("seed", [0, 1])
def test_the_formula_with_weights_of_mean_1(seed: int) -> None:
    world = make_world(seed=seed)
    recipe = recipes.get("srpo")
    assert recipe.batch_quantity is not None
    teacher = sd.TokenStats({"teacher_entropy": plain_stats(world, {}).teacher_entropy})
    value, counts = recipe.batch_quantity(teacher, Tokens(world.tokens))
    mean = value[counts].mean()

    def formula(w: World) -> Tensor:
        s, t = w.student_logp().exp(), w.teacher_logp().exp()
        wrong = w.tokens["success"] == 0
        share = certainty(w, 1.0) / certainty(w, 1.0)[wrong].mean()
        assert share[wrong].mean().item() == pytest.approx(1.0)
        return routed(w, weight(w) * share * jsd(s, t, 0.5))

    check(recipe, formula, world.having(batch_mean=mean.expand(12)))


def test_not_normalised_without_the_mean() -> None:
    def formula(w: World) -> Tensor:
        s, t = w.student_logp().exp(), w.teacher_logp().exp()
        return routed(w, weight(w) * certainty(w, 2.0) * jsd(s, t, 0.0))

    check(recipes.get("srpo", entropy_beta=2.0, alpha=0.0), formula, make_world(seed=2))


def test_route_by_advantage_on_a_top_k_without_entropy_weights() -> None:
    def formula(w: World) -> Tensor:
        pulled = jsd(*on_support(w, of="student", k=5, tail=True), 0.5)
        return routed(w, pulled, by_advantage=True)

    recipe = recipes.get(
        "srpo", route="advantage", support="student_topk", topk=5, entropy_beta=0, is_clip=None
    )
    check(recipe, formula, make_world(seed=3))
    assert recipe.batch_quantity is None
    assert recipe.inputs == {"weight", "adv"}


@pytest.mark.parametrize(("route", "distils"), [("success", False), ("advantage", True)])
def test_an_all_correct_group_is_distilled_only_by_advantage(route: str, distils: bool) -> None:
    world = two_way_world(0.5, 0.9, adv=0.0, success=1.0)
    loss = run_plain(recipes.get("srpo", route=route), world)[0]
    assert (loss > 0) == distils


def test_an_unsure_teacher_counts_less() -> None:
    """exp(-H): .5 for a coin, nearly 1 for a sure teacher."""
    losses = []
    for beta in (0.0, 1.0):
        recipe = recipes.get("srpo", entropy_beta=beta, alpha=0.0)
        losses.append(run_plain(recipe, two_way_world(0.3, 0.5, adv=-1.0, success=0.0))[0].item())
    assert losses[1] == pytest.approx(losses[0] * math.exp(-math.log(2.0)))


def test_wrong_tokens_without_a_context_are_0_and_correct_ones_are_not() -> None:
    for success, expected in ((0.0, 0.0), (1.0, -1.0)):
        world = two_way_world(0.5, 0.9, adv=1.0, success=success, signal=0.0)
        assert run_plain(recipes.get("srpo"), world)[0].item() == expected


def test_the_mean_is_that_of_distilled_tokens() -> None:
    world = make_world()
    recipe = recipes.get("srpo")
    assert recipe.batch_quantity is not None
    signal = torch.ones(12)
    signal[2] = 0
    _, counts = recipe.batch_quantity(
        plain_stats(world, {}), Tokens({**world.tokens, "signal": signal})
    )
    expected = world.tokens["success"] == 0
    expected[2] = False
    assert torch.equal(counts, expected)


def test_weights_that_are_all_0_are_not_normalised() -> None:
    zero = torch.zeros(C, dtype=torch.float64)
    for part in run_engine(recipes.get("srpo"), make_world().having(batch_mean=zero)):
        assert part.isfinite().all()
