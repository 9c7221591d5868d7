import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from recipes.world import World, make_world, plain_stats, run_engine
from torch import Tensor

import sdkernels as sd
from sdkernels import recipes
from sdkernels.engine.stats import Tokens
from sdkernels.recipes.shielded import Shielded

UNSURE = 1.8  # nats
WHOLE = {"student_topk": {"support": "student_topk", "topk": 23, "tail": False}, "full": {}}


def wrong_with_context(world: World) -> Tensor:
    return (world.tokens["success"] == 0) & (world.tokens["signal"] == 1)


def unsure(world: World) -> Tensor:
    t = world.teacher_logp().exp()
    return -(t * t.log()).sum(-1) > UNSURE


def nowhere(world: World) -> Tensor:
    return torch.zeros(12, dtype=torch.bool)


# Recipe, settings, where its divergence counts.
CHOOSING: list[tuple[str, dict[str, Any], Callable[[World], Tensor]]] = [
    *(("srpo", {"alpha": 1.0, **on}, wrong_with_context) for on in WHOLE.values()),
    *(
        ("sdpo", {"alpha": 1.0, "grpo_weight": 0.5, **on}, lambda w: w.tokens["signal"] == 1)
        for on in WHOLE.values()
    ),
    *(("sdpo", {"alpha": 1.0, "grpo_weight": 1.0, **on}, nowhere) for on in WHOLE.values()),
    *(("rosd", {"alpha": 1.0, **on}, lambda w: w.tokens["suffix"] == 1) for on in WHOLE.values()),
    ("eopd", {"base": "sampled", "topk": 5, "entropy_threshold": UNSURE}, unsure),
    ("eopd", {"base": "sampled", "topk": 5, "cover_weight": 0.0}, nowhere),
    ("dasd", {"form": "full_vocab", "alpha": 1.0, "beta": 0.0}, nowhere),
]
every_choice = pytest.mark.parametrize(("name", "cfg", "where"), CHOOSING)


def choosing_world() -> World:
    return make_world(sharpness=2.0).having(
        signal=torch.tensor([1.0, 0, 1] * 4), suffix=torch.tensor([0.0, 0, 1, 1] * 3)
    )


def loss_and_gradients(
    recipe: recipes.Recipe, world: World, infinite_C: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """On plain statistics, in which the divergences of some tokens are infinite."""
    leaves = {}
    for key, value in plain_stats(world, recipe.engine).items():
        leaf = value.detach().clone()
        if key in ("kl_student_teacher", "kl_teacher_student"):
            leaf[infinite_C] = math.inf
        if key == ("topk_logp" if recipe.name == "eopd" else "teacher_topk_logp"):
            leaf[infinite_C, 0] = -math.inf
        leaves[key] = leaf.requires_grad_(leaf.is_floating_point())
    loss_C = recipe.loss_fn(sd.TokenStats(leaves), Tokens(world.tokens))
    live = {key: leaf for key, leaf in leaves.items() if leaf.requires_grad}
    found = torch.autograd.grad(loss_C.sum(), list(live.values()), allow_unused=True)
    return loss_C.detach(), {k: g for k, g in zip(live, found, strict=True) if g is not None}


@every_choice
def test_an_infinite_divergence_that_does_not_count_changes_nothing(
    name: str, cfg: dict[str, Any], where: Callable[[World], Tensor]
) -> None:
    recipe, world = recipes.get(name, **cfg), choosing_world()
    expected = loss_and_gradients(recipe, world, nowhere(world))
    assert torch.isfinite(expected[0]).all()
    assert not where(world).all()
    got = loss_and_gradients(recipe, world, ~where(world))
    torch.testing.assert_close(got, expected, rtol=0, atol=0)


@every_choice
def test_one_that_counts_stays_infinite(
    name: str, cfg: dict[str, Any], where: Callable[[World], Tensor]
) -> None:
    world = choosing_world()
    counted = where(world) & (world.tokens["weight"] != 0)
    loss_C, _ = loss_and_gradients(recipes.get(name, **cfg), world, counted)
    assert torch.equal(loss_C.isinf(), counted)


@pytest.mark.parametrize("support", WHOLE)
def test_a_teacher_that_bans_ids_through_the_engine(support: str) -> None:
    """Correct rollouts of SRPO train on; a wrong one has no finite KL(S||T), and is named."""
    recipe = recipes.get("srpo", alpha=1.0, **WHOLE[support])
    world = make_world()
    world.teacher_CV[:, 20:] = -math.inf
    world.y_C = world.y_C.clamp(max=19)

    right = torch.ones(12)
    found = run_engine(recipe, world.having(success=right))
    assert all(torch.isfinite(part).all() for part in found)
    right[4] = 0
    with pytest.raises(ValueError, match=r"the loss of token \[4\] is inf"):
        run_engine(recipe, world.having(success=right))


def test_dropped_tokens_hold_the_fill_and_get_no_gradient() -> None:
    logp = torch.tensor([[math.nan, 1.0], [2.0, 3.0]], requires_grad=True)
    teacher_logp = torch.tensor([5.0, 6.0], requires_grad=True)
    stats = sd.TokenStats({"topk_logp": logp, "teacher_logp": teacher_logp})
    shielded = Shielded(stats, torch.tensor([False, True]), fill=7)
    assert shielded.topk_logp.tolist() == [[7, 7], [2, 3]]
    assert shielded.teacher_logp.tolist() == [7, 6]
    assert not shielded.teacher_logp.requires_grad
    shielded.topk_logp.sum().backward()
    assert logp.grad is not None
    assert logp.grad.tolist() == [[0, 0], [1, 1]]
    assert not hasattr(shielded, "entropy")
