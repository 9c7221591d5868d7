"""Changes with paired bootstrap intervals: each run before and after training, and against the
first run, problem by problem.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdkernels.report.fields import Cell, Head, as_number
from sdkernels.report.load import Run
from sdkernels.report.tables import table
from sdkernels.report.text import DASH, count, number, typographic
from sdkernels.train.statistics import paired_difference


@dataclass(frozen=True)
class Quantity:
    """A score of a problem that is paired, and the factor of its unit."""

    key: str
    title: str
    scale: float


NO_DIFFERENCE = "no problem differs"
_TOLD = 4  # changes that one sentence can hold
QUANTITIES = (
    Quantity("accuracy", "Accuracy, points", 100.0),
    Quantity("completion_length", "Length, tokens", 1.0),
    Quantity("marker_count", "Markers per response", 1.0),
)


def compare_accuracy(runs: Sequence[Run]) -> str:
    """Return one sentence on whether training changed accuracy, or nothing where no run was
    evaluated both times on the same problems.

    It follows from the cells that `section` shows. Whether the intervals of the two accuracies
    overlap is another question: the problems are the same, and their difficulty is in both.
    """
    cells = [(run, _cell(run.problems, "before", run.problems, QUANTITIES[0])) for run in runs]
    known = [(run, cell) for run, cell in cells if cell.state != "missing"]
    apart = [(run, cell) for run, cell in known if cell.state == "apart"]
    if not known:
        return ""
    evaluated = count(len(known), "condition")
    if len(known) < len(runs):
        evaluated += " evaluated both times"
    if not apart:
        return (
            f"No paired 95 % interval of a change in accuracy leaves out 0 ({evaluated}), so no "
            "change in accuracy can be claimed."
        )
    told = [
        f"{run.label} {typographic(cell.shown)} points ({cell.extra})"
        for run, cell in apart[:_TOLD]
    ]
    if len(apart) > _TOLD:
        told.append(f"and {len(apart) - _TOLD} more")
    return (
        f"Accuracy changed in {len(apart)} of {evaluated}, by the paired 95 % intervals that leave "
        f"out 0: {'; '.join(told)}."
    )


def section(runs: Sequence[Run]) -> str:
    """Return the table of changes, or a remark where no two evaluations can be paired."""
    heads, cells = columns(runs)
    if all(cell.why or cell.shown == "base" for row in cells for cell in row):
        return (
            '<p class="empty">No two evaluations of the same problems were recorded, so nothing '
            "can be paired.</p>"
        )
    return table(runs, heads, cells, made_of=False)


def columns(runs: Sequence[Run]) -> tuple[list[Head], list[list[Cell]]]:
    """Return the columns, and the cells of each run."""
    groups = ["After minus before training"]
    if len(runs) > 1:
        groups.append(f"Difference to {runs[0].label} after training")
    heads = [Head(group, quantity.title, "") for group in groups for quantity in QUANTITIES]
    cells = []
    for index, run in enumerate(runs):
        row = [_cell(run.problems, "before", run.problems, quantity) for quantity in QUANTITIES]
        if len(runs) > 1:
            row += [
                Cell("base")
                if index == 0
                else _cell(runs[0].problems, "after", run.problems, quantity)
                for quantity in QUANTITIES
            ]
        cells.append(row)
    return heads, cells


def _cell(
    base: dict[str, list[dict[str, Any]]],
    when: str,
    other: dict[str, list[dict[str, Any]]],
    quantity: Quantity,
) -> Cell:
    before, after = base.get(when) or [], other.get("after") or []
    if not before or not after:
        return Cell(DASH, "missing", "one of the two evaluations was not recorded")
    ours, theirs = _by_problem(before, quantity.key), _by_problem(after, quantity.key)
    if ours.keys() != theirs.keys():
        return Cell(DASH, "missing", "the two evaluations are of different problems")
    if not ours:
        return Cell(DASH, "missing", "the evaluations did not record it")
    found: Any = paired_difference(list(ours.values()), [theirs[name] for name in ours])
    low, high = (quantity.scale * bound for bound in found["interval"])
    difference = quantity.scale * found["difference"]
    if not found["better"] and not found["worse"]:
        return Cell("0", extra=NO_DIFFERENCE)
    if found["n"] == 1:
        return Cell(_signed(difference), extra="1 problem")
    apart = "apart" if low > 0 or high < 0 else "value"
    return Cell(_signed(difference), apart, extra=f"{_typed(low)} to {_typed(high)}")


def _by_problem(entries: Sequence[dict[str, Any]], key: str) -> dict[str, float]:
    found = {str(entry.get("id")): as_number(entry.get(key)) for entry in entries}
    return {name: value for name, value in found.items() if value is not None}


def _signed(value: float) -> str:
    return number(value, signed=True)


def _typed(value: float) -> str:
    return typographic(_signed(value))
