"""The gap step by step: which steps of its reasoning the teacher would keep."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sdkernels.report.fields import Cell, Head, has_teacher, percent, signed
from sdkernels.report.load import Run, TokenRecord, read_rollout
from sdkernels.report.tables import table
from sdkernels.report.text import DASH, count
from sdkernels.train.reasoning_steps import check_arithmetic, token_steps

# Rollouts of a run that the averages look at: enough, and a bound on the time a report takes.
MAX_ROLLOUTS = 400


@dataclass(frozen=True)
class StepGap:
    """One reasoning step: mean gap of its tokens in nats, None without a teacher, and whether its
    arithmetic holds, None without an equation.
    """

    text: str
    gap: float | None
    holds: bool | None


HEADS = (
    Head("Mean gap of a step, nats per token", "in correct rollouts", ""),
    Head("Mean gap of a step, nats per token", "in wrong rollouts", ""),
    Head("Mean gap of a step, nats per token", "sums hold", ""),
    Head("Mean gap of a step, nats per token", "sums fail", ""),
    Head("Recorded steps", "sums that hold", "%"),
    Head("Recorded steps", "all", ""),
)


def step_gaps(record: TokenRecord) -> list[StepGap]:
    """Return the steps of a rollout, in order."""
    gaps = record.columns["gap"] or []
    found = []
    for step in token_steps(record.tokens):
        known = [gap for gap in gaps[step.first : step.end] if gap is not None]
        mean = sum(known) / len(known) if known else None
        found.append(StepGap(step.text, mean, check_arithmetic(step.text)))
    return found


def section(runs: Sequence[Run]) -> str:
    """Return the table of step gaps by verdict and by arithmetic."""
    cells = [_cells(run) for run in runs]
    if all(cell.state == "missing" for row in cells for cell in row):
        return '<p class="empty">No rollout was recorded, so there are no steps to show.</p>'
    return table(runs, HEADS, cells, made_of=False)


def _cells(run: Run) -> list[Cell]:
    spread = max(1, -(-len(run.rollouts) // MAX_ROLLOUTS))
    records = [read_rollout(run, ref) for ref in run.rollouts[::spread]]
    judged = [(record.success, step) for record in records for step in step_gaps(record)]
    if not judged:
        return [Cell(DASH, "missing", "no rollout was recorded")] * len(HEADS)
    steps = [step for _, step in judged]
    holding = [step.holds for step in steps if step.holds is not None]
    checked = Cell(DASH, "missing", "no step has an equation between numbers")
    if holding:
        checked = Cell(percent(sum(holding) / len(holding)), extra=f"of {len(holding)}")
    silent = ""
    if all(step.gap is None for step in steps):
        silent = "no recorded rollout has a gap"
        if has_teacher(run.summary) is False:
            silent = "no teacher in this condition, so there is nothing to compare the student with"
    return [
        _mean((s for success, s in judged if success is True), silent or _NO_ROLLOUT + "correct"),
        _mean((s for success, s in judged if success is False), silent or _NO_ROLLOUT + "wrong"),
        _mean((s for s in steps if s.holds is True), silent or "no step has sums that hold"),
        _mean((s for s in steps if s.holds is False), silent or "no step has sums that fail"),
        checked,
        Cell(str(len(steps)), extra=count(len(records), "rollout")),
    ]


_NO_ROLLOUT = "no rollout with a gap was recorded that is verified as "


def _mean(steps: Iterable[StepGap], why: str) -> Cell:
    gaps = [step.gap for step in steps if step.gap is not None]
    if not gaps:
        return Cell(DASH, "missing", why)
    return Cell(signed(sum(gaps) / len(gaps)), extra=count(len(gaps), "step"))
