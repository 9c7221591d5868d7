import torch
from recipes.test_sdpo import jsd, on_support, weight
from recipes.world import World, check, make_world, run_plain
from torch import Tensor

from sdkernels import recipes


def test_the_formula() -> None:
    def formula(world: World) -> Tensor:
        s, t = world.student_logp().exp(), world.teacher_logp().exp()
        return weight(world) * jsd(s, t, 0.5) * world.tokens["suffix"]

    suffix = torch.tensor([0.0, 0, 1, 1] * 3, dtype=torch.float64)
    check(recipes.get("rosd"), formula, make_world().having(suffix=suffix))


def test_the_published_support() -> None:
    def formula(world: World) -> Tensor:
        return jsd(*on_support(world, of="student", k=9, tail=True), 0.5)

    check(recipes.get("rosd", support="student_topk", topk=9, is_clip=None), formula, make_world())


def test_without_a_quote_the_whole_response_counts() -> None:
    world = make_world()
    expected = run_plain(recipes.get("sdpo"), world)
    assert all(
        torch.equal(ours, theirs)
        for ours, theirs in zip(run_plain(recipes.get("rosd"), world), expected, strict=True)
    )
    suffix = world.having(suffix=torch.zeros(12))
    everywhere = run_plain(recipes.get("rosd", localise=False), suffix)
    assert torch.equal(everywhere[0], expected[0])
    assert run_plain(recipes.get("rosd"), suffix)[0] == 0


def test_what_a_trainer_has_to_know() -> None:
    recipe = recipes.get("rosd")
    assert recipe.needs == {"teacher", "rewards", "group", "old_logp"}
    assert recipe.skips_failed_groups
    assert recipe.context == ("self_reflection", {})
    assert not recipe.anchored
    free = recipes.get("rosd", skip_failed_groups=False, is_clip=None)
    assert free.needs == {"teacher"}
    assert not free.skips_failed_groups
    # The context that it brings must not leave them out either.
    assert free.context == ("self_reflection", {"need_success": False})
