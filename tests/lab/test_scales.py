import dataclasses
import json

import pytest

from sdkernels.lab.conditions import CONDITIONS
from sdkernels.lab.scales import ONE_FAMILY, OTHER_FAMILIES, SCALES, SEVERAL_FAMILIES


@pytest.mark.parametrize("name", SCALES)
def test_cells_are_distinct_and_compare_what_the_issue_asks(name: str) -> None:
    scale = SCALES[name]
    cells = scale.cells(2)
    assert len({cell.name for cell in cells}) == len(cells)
    assert {cell.condition for cell in cells} == set(CONDITIONS)
    found = {(cell.condition, cell.coverage, cell.families) for cell in cells}
    # Every group that an expectation compares with pull, push and DASD is there.
    for condition in ("grpo", "pull_solution", "pull_step_critique"):
        assert (condition, scale.routed_coverage, SEVERAL_FAMILIES) in found
    assert ("pull_solution", scale.routed_coverage, ONE_FAMILY) in found


def test_seeds_come_one_after_the_other() -> None:
    seeds = [cell.seed for cell in SCALES["default"].cells(3)]
    assert seeds == sorted(seeds)
    assert set(seeds) == {0, 1, 2}


def test_trained_and_other_families_do_not_meet() -> None:
    assert not set(SEVERAL_FAMILIES) & set(OTHER_FAMILIES)
    assert set(ONE_FAMILY) < set(SEVERAL_FAMILIES)


@pytest.mark.parametrize("name", SCALES)
def test_settings_can_be_written_to_json(name: str) -> None:
    settings = dataclasses.asdict(SCALES[name])
    assert json.loads(json.dumps(settings))["base"]["size"]["hidden"] > 0
