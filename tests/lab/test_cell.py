import json
from pathlib import Path
from typing import Any

from sdkernels.lab.cell import cell_file, evaluation_sets, run_cell, work
from sdkernels.lab.conditions import Cell
from sdkernels.lab.distill import training_problems
from sdkernels.lab.model import save
from sdkernels.lab.scales import Scale

CELL = Cell("grpo", 2, ("sum", "product"), 0)


def test_a_cell_has_its_sets_and_its_steps(toy: Scale, blank_model: Any) -> None:
    result = run_cell(toy, CELL, blank_model)
    assert result["cell"] == {
        "condition": "grpo",
        "coverage": 2,
        "families": ("sum", "product"),
        "seed": 0,
    }
    assert set(result["sets"]) == {"seen", "in_domain", "longer", "other"}
    assert len(result["steps"]) == toy.distill.steps
    assert len(result["sets"]["seen"]["problems"]["accuracy"]) == 2
    again = run_cell(toy, CELL, blank_model)
    assert {**again, "seconds": 0} == {**result, "seconds": 0}


def test_training_problems_are_not_those_of_the_evaluation(toy: Scale) -> None:
    fresh = {problem for one in evaluation_sets(toy, ("product",)) for problem in one.problems}
    for seed in range(20):
        cell = Cell("grpo", 20, ("product",), seed)
        assert not fresh & set(training_problems(cell, toy.distill, frozenset(fresh)))


def test_work_leaves_a_whole_file(toy: Scale, blank_model: Any, tmp_path: Path) -> None:
    save(blank_model, tmp_path / "base")
    seconds = work(toy, CELL, tmp_path, "cpu")
    found = json.loads(cell_file(tmp_path, CELL).read_text(encoding="utf-8"))
    assert found["seconds"] == seconds
    assert [path.name for path in (tmp_path / "cells").iterdir()] == [f"{CELL.name}.json"]
