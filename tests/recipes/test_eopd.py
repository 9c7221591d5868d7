import math

import pytest
import torch
from recipes.test_sdpo import jsd, on_support
from recipes.world import World, check, make_world, run_plain, two_way_world
from torch import Tensor

from sdkernels import recipes


def cover(world: World, *, k: int, tail: bool, threshold: float) -> Tensor:
    """KL(T||S) on the teacher's top-k where H(T) is above the threshold, else 0."""
    t = world.teacher_logp().exp()
    unsure = -(t * t.log()).sum(-1) > threshold
    assert 0 < unsure.sum() < len(unsure)
    return jsd(*on_support(world, of="teacher", k=k, tail=tail), 0.0) * unsure


@pytest.mark.parametrize("tail", [False, True])
@pytest.mark.parametrize("k", [3, 16])
def test_over_the_full_vocabulary(k: int, tail: bool) -> None:
    def formula(world: World) -> Tensor:
        s, t = world.student_logp().exp(), world.teacher_logp().exp()
        return jsd(s, t, 1.0) + cover(world, k=k, tail=tail, threshold=1.8)

    recipe = recipes.get("eopd", topk=k, tail=tail, entropy_threshold=1.8)
    check(recipe, formula, make_world(sharpness=2.0))


def test_on_the_sampled_token() -> None:
    def formula(world: World) -> Tensor:
        logp, old = world.at_y(world.student_logp()), world.tokens["old_logp"]
        gap = world.at_y(world.teacher_logp()) - old
        return -(logp - old).exp() * gap + 0.4 * cover(world, k=16, tail=False, threshold=1.8)

    recipe = recipes.get("eopd", base="sampled", cover_weight=0.4, entropy_threshold=1.8)
    check(recipe, formula, make_world(sharpness=2.0))
    assert recipe.needs == {"teacher", "old_logp"}


def test_kl_student_teacher_first_and_kl_teacher_student_where_unsure() -> None:
    """S = (.5, .5), T = (.9, .1): H(T) = .325 nats."""
    student_teacher = 0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(0.5 / 0.1)
    teacher_student = 0.9 * math.log(0.9 / 0.5) + 0.1 * math.log(0.1 / 0.5)
    world = two_way_world(0.5, 0.9)
    for threshold, expected in (
        (0.33, student_teacher),
        (0.32, student_teacher + teacher_student),
    ):
        recipe = recipes.get("eopd", topk=2, entropy_threshold=threshold)
        assert run_plain(recipe, world)[0].item() == pytest.approx(expected)


def test_defaults_of_the_source() -> None:
    recipe = recipes.get("eopd")
    assert recipe.engine == {"topk": 16, "topk_of": "teacher"}
    assert recipe.config["entropy_threshold"] == 0.8
    assert recipe.needs == {"teacher"}


def test_one_renormalised_id_is_refused() -> None:
    with pytest.raises(ValueError, match="topk=1 with tail=False gives no signal"):
        recipes.get("eopd", topk=1)


def test_a_sampled_teacher_that_equals_the_student_gives_nothing() -> None:
    world = make_world().without("old_logp")
    same = World(
        world.hidden_CD,
        world.weight_VD,
        world.logits_CV().detach(),
        world.y_C,
        world.tokens,
    )
    loss = run_plain(recipes.get("eopd", base="sampled"), same)[0]
    assert torch.abs(loss) < 1e-14
