"""Entropy deciles: how gap and direction depend on how undecided the student is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdkernels.report.curves import Axis, panels
from sdkernels.report.fields import as_number
from sdkernels.report.load import DRAWABLE, Run
from sdkernels.report.metrics import Metric
from sdkernels.report.series import Line, Panel, limits
from sdkernels.report.text import escape

DECILES = 10
METRICS = (
    Metric(
        "entropy_by_entropy_decile",
        "Student entropy",
        "nats per token",
        "What the tenths are: 1 holds each response's surest tokens, 10 its most undecided ones.",
    ),
    Metric(
        "gap_by_entropy_decile",
        "Gap",
        "nats per token",
        "Where the teacher corrects. Below 0 it finds the student's tokens less likely than the "
        "student does; a drop on the right says that it corrects at the forks.",
    ),
    Metric(
        "direction_by_entropy_decile",
        "Direction of the gate",
        "",
        "Above 0 the gate pulls tokens towards the teacher, below 0 it pushes them away.",
    ),
)
AXIS = Axis(1, DECILES, tuple((at, str(at)) for at in range(1, DECILES + 1)), "tenth")


def decile_panels(runs: Sequence[Run]) -> list[Panel]:
    """Return a panel for each recorded quantity: means over the steps of a run, by tenth."""
    drawn = []
    for metric in METRICS:
        lines = [Line(index, _points(run, metric.key)) for index, run in enumerate(runs)]
        lines = [line for line in lines if line.points]
        if lines:
            drawn.append(Panel(metric, lines, *limits(lines, metric)))
    return drawn


def section(runs: Sequence[Run]) -> str:
    """Return the panels as HTML."""
    drawn = decile_panels(runs)
    if not drawn:
        return (
            '<p class="empty">No run recorded its tokens by entropy, '
            "or no response has the ten tokens that this takes.</p>"
        )
    silent = [run.label for run in runs if not _points(run, "gap_by_entropy_decile")]
    note = ""
    if 0 < len(silent) < len(runs):
        note = f"Without a teacher, and so without a gap: {', '.join(silent)}."
    return panels(drawn, AXIS, runs) + (f'<p class="foot">{escape(note)}</p>' if note else "")


def _points(run: Run, key: str) -> list[tuple[float, float]]:
    """Return `(tenth, mean over the steps)` for the tenths that have a value."""
    columns = [values for step in run.steps if (values := _values(step.get(key)))]
    points = []
    for at in range(DECILES):
        found = [values[at] for values in columns]
        known = [value for value in found if value is not None]
        if known:
            points.append((float(at + 1), sum(known) / len(known)))
    return points


def _values(recorded: Any) -> list[float | None] | None:
    """Return the ten values that a step recorded; None where they are not ten."""
    if not isinstance(recorded, list) or len(recorded) != DECILES:
        return None
    numbers = [as_number(value) for value in recorded]
    return [value if value is not None and abs(value) < DRAWABLE else None for value in numbers]
