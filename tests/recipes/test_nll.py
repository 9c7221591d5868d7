from recipes.world import World, check, make_world, run_engine
from torch import Tensor

from sdkernels import recipes


def formula(world: World) -> Tensor:
    return -world.at_y(world.student_logp())


def test_it_is_minus_log_prob_of_the_sampled_token() -> None:
    check(recipes.get("nll"), formula, make_world())


def test_it_needs_neither_teacher_nor_rewards() -> None:
    recipe = recipes.get("nll")
    assert recipe.needs == frozenset()
    assert recipe.inputs == {"weight"}
    only_weights = make_world().without("adv", "old_logp", "success", "gap_scale", "tau", "sigma")
    loss, hidden, _ = run_engine(recipe, only_weights)
    assert loss > 0
    assert hidden.abs().max() > 0
