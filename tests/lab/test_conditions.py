import pytest
import torch

from sdkernels import recipes
from sdkernels.lab.conditions import CONDITIONS, Cell, make_gate
from sdkernels.lab.contexts import CONTEXTS


@pytest.mark.parametrize("name", CONDITIONS)
def test_conditions_name_what_exists(name: str) -> None:
    condition = CONDITIONS[name]
    recipe = recipes.get(condition.recipe, **condition.settings)
    assert condition.context in CONTEXTS
    assert ("gate" in recipe.needs) == bool(condition.gate)
    assert ("teacher" in recipe.needs) == (condition.context != "none")


def test_gates_point_where_they_say() -> None:
    entropy = torch.tensor([[0.0, 1e-6, 0.1, 0.5, 3.3, 1e-6, 0.2, 2.0, 0.3, 0.4]])
    mask = torch.ones_like(entropy, dtype=torch.bool)
    signs = {}
    for name in ("pull", "push", "dasd"):
        bound = make_gate(name).bind(entropy, mask)
        signs[name] = bound.direction(entropy, bound.tau, bound.sigma).sign()[0]
    assert (signs["pull"] == 1).all()
    assert (signs["push"][1:] == -1).all()
    assert signs["dasd"].tolist() == [1, 1, 1, 1, -1, 1, 1, -1, 1, 1]
    assert make_gate("") is None


def test_routed_conditions_differ_in_the_gate_alone() -> None:
    for end in ("", "_weak"):
        routed = [CONDITIONS[name + end] for name in ("grpo_pull", "grpo_push", "dasd")]
        assert len({(one.recipe, one.context, str(one.settings)) for one in routed}) == 1
        assert len({one.gate for one in routed}) == 3


def test_cells_are_named_by_what_they_are() -> None:
    cell = Cell("dasd", 8, ("sum", "product"), 3)
    assert cell.group == "dasd-8-sum+product"
    assert cell.name == "dasd-8-sum+product-seed3"
