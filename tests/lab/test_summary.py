import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sdkernels.lab.cell import cell_file
from sdkernels.lab.conditions import Cell
from sdkernels.lab.evaluate import PER_PROBLEM
from sdkernels.lab.summary import SETS, Results, bootstrap, without_problems

SHARES = dict.fromkeys(
    ("guess_accuracy", "noticed", "doubted", "rescued", "well_formed", "truncated"), 0.5
)


def measured(values: list[float]) -> dict[str, Any]:
    return {**SHARES, "problems": dict.fromkeys(PER_PROBLEM, values)}


def write(folder: Path, cells: dict[Cell, list[float]], base: list[float]) -> Results:
    """A run whose metrics are all the same; the base is `base` on fresh problems, 0 on seen."""
    sets = {part: measured(base) for part in SETS if part != "seen"}
    facts = {"sets": {"sum": sets, "sum+product": sets}}
    (folder / "base.json").write_text(json.dumps(facts), encoding="utf-8")
    (folder / "cells").mkdir()
    for cell, values in cells.items():
        content = {
            "cell": {"seed": cell.seed},
            "sets": {part: measured(values) for part in SETS},
            "base_seen": measured([0.0] * len(values)),
        }
        cell_file(folder, cell).write_text(json.dumps(content), encoding="utf-8")
    return Results(folder, list(cells))


def cell(name: str, seed: int, coverage: int = 8) -> Cell:
    return Cell(name, coverage, ("sum",), seed)


def test_changes_are_paired_with_the_base(tmp_path: Path) -> None:
    cells = {cell("grpo", 0): [0.5, 1.0], cell("grpo", 1): [0.7, 0.8]}
    results = write(tmp_path, cells, [0.25, 0.75])
    group = cell("grpo", 0).group
    assert results.changes(group, "other", "accuracy").tolist() == [
        [0.25, 0.25],
        pytest.approx([0.45, 0.05]),
    ]
    assert results.change(group, "other", "accuracy").mean == pytest.approx(0.25)
    assert results.change(group, "seen", "accuracy").mean == pytest.approx(0.75)
    assert results.level(group, "other", "waits").mean == pytest.approx(0.75)


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    """Seeds that only one of the two has do not count."""
    cells = {
        cell("grpo", 0): [0.1, 0.1],
        cell("grpo", 1): [0.9, 0.9],
        cell("dasd", 1): [1.0, 1.0],
    }
    results = write(tmp_path, cells, [0.0, 0.0])
    groups = cell("dasd", 1).group, cell("grpo", 1).group
    found = results.difference(*groups, "in_domain", "accuracy")
    assert found.as_list() == pytest.approx([0.1, 0.1, 0.1])
    turned = results.difference(*groups[::-1], "in_domain", "accuracy")
    assert turned.mean == pytest.approx(-0.1)


def test_seen_problems_of_different_number_are_paired_by_seed(tmp_path: Path) -> None:
    cells = {cell("grpo", 0, 1): [0.5], cell("grpo", 0, 2): [0.5, 1.0]}
    results = write(tmp_path, cells, [0.0])
    found = results.difference(
        cell("grpo", 0, 2).group, cell("grpo", 0, 1).group, "seen", "accuracy"
    )
    assert found.mean == pytest.approx(0.25)


def test_the_interval_covers_both_seeds_and_problems() -> None:
    rng = np.random.default_rng(0)
    noise = rng.normal(size=(4, 50))
    seeds_differ = bootstrap(np.array([[0.0], [1.0], [2.0], [3.0]]) + 0 * noise)
    problems_differ = bootstrap(0 * noise + rng.normal(size=(1, 50)))
    alike = bootstrap(0 * noise + 1.0)
    assert seeds_differ.low < 0.8
    assert seeds_differ.high > 2.2
    assert problems_differ.low < problems_differ.mean < problems_differ.high
    assert alike.as_list() == [1.0, 1.0, 1.0]


def test_the_interval_of_one_seed_is_about_right() -> None:
    values = np.random.default_rng(1).normal(size=(1, 400))
    found = bootstrap(values)
    half = 1.96 * values.std() / 20
    assert found.mean == pytest.approx(values.mean())
    assert found.high - found.low == pytest.approx(2 * half, rel=0.1)


def test_missing_cells_are_left_out_and_none_is_an_error(tmp_path: Path) -> None:
    results = write(tmp_path, {cell("grpo", 0): [1.0]}, [0.0])
    assert results.has("grpo-8-sum")
    assert not results.has("grpo-8-sum", "dasd-8-sum")
    with pytest.raises(ValueError, match="no cell is done yet"):
        Results(tmp_path, [cell("dasd", 0)])


def test_the_summary_has_no_single_problems(tmp_path: Path) -> None:
    results = write(tmp_path, {cell("grpo", seed): [1.0, 0.0] for seed in range(2)}, [0.0, 0.0])
    summary = results.summary()
    assert "problems" not in json.dumps(summary)
    (group,) = summary["groups"]
    assert group["seeds"] == [0, 1]
    assert group["sets"]["other"]["accuracy"]["change"][0] == 0.5
    assert group["sets"]["other"]["steps"]["noticed"] == 0.5
    assert without_problems({"a": {"problems": [1], "b": 2}}) == {"a": {"b": 2}}
