"""What k answers to a problem come to, before and after training: Avg@k, Pass@k and Maj@k."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sdkernels.report.fields import Cell, Column, as_number, lookup, percent
from sdkernels.report.load import Run
from sdkernels.report.tables import table
from sdkernels.report.text import DASH

WHENS = (("before", "Before training, %"), ("after", "After training, %"))


def section(runs: Sequence[Run]) -> str:
    """Return the table, or nothing where no evaluation recorded more than accuracy."""
    found = {k for run in runs for when, _ in WHENS if (k := answers_of(run.summary.get(when)))}
    if not found:
        return ""
    # Runs with different k share a column; each cell then says its own.
    shared = found.pop() if len(found) == 1 else None
    heads = [head for _, group in WHENS for head in columns("", shared, group=group)]
    cells = [
        [cell for when, group in WHENS for cell in _cells(run, when, group, shared)] for run in runs
    ]
    return (
        '<p class="foot">Avg@k: mean share of right answers among k to the same problem. Pass@k: '
        "at least one of them is right. Maj@k: the most frequent one is right.</p>"
    ) + table(runs, heads, cells, made_of=False)


def answers_of(result: Any) -> int | None:
    """Return how many answers a problem had, where Pass@k of so many was recorded."""
    k = as_number(lookup(result, "k")) if isinstance(result, Mapping) else None
    if k is None or not 1 <= k < 1e6 or as_number(lookup(result, "pass_at", str(int(k)))) is None:
        return None
    return int(k)


def columns(prefix: str, k: int | None, *, group: str, unit: str = "") -> tuple[Column, ...]:
    """Return the three columns; `prefix` is where in a summary the evaluation stands."""
    path = (prefix,) if prefix else ()
    name = "k" if k is None else str(k)
    return (
        Column(group, f"Avg@{name}", unit, (*path, "accuracy"), percent),
        Column(group, f"Pass@{name}", unit, (*path, "pass_at", name), percent),
        Column(group, f"Maj@{name}", unit, (*path, "maj_at_k"), percent),
    )


def _cells(run: Run, when: str, group: str, shared: int | None) -> list[Cell]:
    k = answers_of(run.summary.get(when))
    cells = [column.cell(run.summary) for column in columns(when, k or shared, group=group)]
    if shared is not None or k is None:
        return cells
    return [
        cell if cell.shown == DASH else Cell(cell.shown, cell.state, cell.why, f"k = {k}")
        for cell in cells
    ]
