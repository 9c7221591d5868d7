"""The quantities a report shows: title, unit, explanation, where to find them, and why one may be
missing.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sdkernels.report import text


@dataclass(frozen=True)
class Metric:
    """One learning curve: a key of `metrics.jsonl` with what a reader needs to understand it."""

    key: str
    title: str
    unit: str
    explain: str
    scale: float = 1.0


METRICS = (
    Metric(
        "loss",
        "Loss",
        "",
        "What the optimizer lowers. Each recipe has its own loss: compare the trend of a line, "
        "not the height of two.",
    ),
    Metric(
        "gap",
        "Gap, teacher minus student",
        "nats per token",
        "Above 0 the teacher finds the student's tokens likelier than the student does.",
    ),
    Metric(
        "accuracy",
        "Training accuracy",
        "%",
        "Share of rollouts whose answer was verified correct.",
        100.0,
    ),
    Metric(
        "entropy",
        "Student entropy",
        "nats per token",
        "How undecided the student is about the next token. A fall to 0 is a collapse.",
    ),
    Metric(
        "teacher_entropy",
        "Teacher entropy",
        "nats per token",
        "The same for the teacher, on the student's text. Same axis as the student's.",
    ),
    Metric(
        "completion_length", "Response length", "tokens", "Mean length of the rollouts of a step."
    ),
    Metric(
        "markers_per_1k",
        "Epistemic markers",
        "per 1,000 tokens",
        "Words that voice doubt or checking: wait, hmm, perhaps, maybe, check ...",
    ),
    Metric(
        "push_share",
        "Pushed tokens",
        "% of tokens",
        "Share of tokens that the gate pushes away from the teacher instead of towards it.",
        100.0,
    ),
    Metric(
        "reward",
        "Reward",
        "mean per rollout",
        "What the verifier paid, averaged over the step's rollouts.",
    ),
)

PHASES = (
    ("rollout", "Rollouts"),
    ("context", "Contexts"),
    ("student_forward", "Student forward"),
    ("teacher_forward", "Teacher forward"),
    ("loss", "Loss"),
    ("backward", "Backward"),
    ("optimizer", "Optimizer"),
)


# The trainer's short name for the model that comes with it.
_ALIASES = {"smollm2": "SmolLM2-135M-Instruct"}
# Recipes that ask no teacher, whatever teacher the run was configured with.
_WITHOUT_TEACHER = ("grpo", "nll")


def lookup(summary: Mapping[str, Any], *path: str) -> Any:
    """Return the value at `path` in nested mappings, or None where a level is missing or not a
    mapping.
    """
    value: Any = summary
    for key in path:
        if not isinstance(value, Mapping):
            return None
        value = value.get(key)
    return value


def as_number(value: Any) -> float | None:
    """Return a JSON number as a float (NaN and infinity included), None for everything else."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value)
    except OverflowError:
        return math.inf if value > 0 else -math.inf


@dataclass(frozen=True)
class Cell:
    """One table cell. `state` is `value`, `bad` (NaN or infinity) or `missing`; `why` explains the
    last two.
    """

    shown: str
    state: str = "value"
    why: str = ""
    extra: str = ""


@dataclass(frozen=True)
class Column:
    """One column of the condition table, for the page and for the terminal."""

    path: tuple[str, ...]
    group: str
    title: str
    unit: str
    show: Callable[[float], str]
    interval: bool = False

    def cell(self, summary: Mapping[str, Any]) -> Cell:
        """Return this column's cell for one run summary."""
        value = as_number(lookup(summary, *self.path))
        if value is None:
            return Cell(text.DASH, "missing", missing_reason(summary, self.path))
        if not math.isfinite(value):
            return Cell(text.number(value), "bad", f"the run wrote {text.number(value)} here")
        extra = ""
        bounds = (
            interval(lookup(summary, *self.path[:-1], "accuracy_ci")) if self.interval else None
        )
        if bounds is not None:
            extra = f"{self.show(bounds[0])}{text.DASH}{self.show(bounds[1])}"
        return Cell(self.show(value), extra=extra)


def _percent_points(value: float) -> str:
    return f"{100 * value:.1f}"


def _signed(value: float) -> str:
    return text.number(value, signed=True)


def _gib(value: float) -> str:
    return f"{value / 2**30:.2f}"


COLUMNS = (
    Column(("last", "loss"), "Last training step", "Loss", "", text.number),
    Column(("last", "gap"), "Last training step", "Gap", "nats", _signed),
    Column(("last", "entropy"), "Last training step", "Student entropy", "nats", text.number),
    Column(
        ("last", "teacher_entropy"), "Last training step", "Teacher entropy", "nats", text.number
    ),
    Column(("last", "markers_per_1k"), "Last training step", "Markers", "per 1k", text.number),
    Column(("last", "completion_length"), "Last training step", "Length", "tokens", text.number),
    Column(
        ("before", "accuracy"), "Evaluation", "Accuracy before", "%", _percent_points, interval=True
    ),
    Column(
        ("after", "accuracy"), "Evaluation", "Accuracy after", "%", _percent_points, interval=True
    ),
    Column(("tokens_per_second",), "Cost", "Speed", "tokens/s", text.number),
    Column(("peak_memory_bytes",), "Cost", "Peak memory", "GiB", _gib),
)


def interval(value: Any) -> tuple[float, float] | None:
    """Return a `[lo, hi]` pair of finite numbers in order, or None."""
    if not isinstance(value, (list, tuple)) or len(value) != 2:
        return None
    lo, hi = as_number(value[0]), as_number(value[1])
    if lo is None or hi is None or not (math.isfinite(lo) and math.isfinite(hi)) or lo > hi:
        return None
    return lo, hi


def has_teacher(summary: Mapping[str, Any]) -> bool | None:
    """Tell whether the run distils from a teacher; None where its summary does not say."""
    recipe, teacher = lookup(summary, "recipe"), lookup(summary, "teacher")
    if recipe is None and teacher is None:
        return None
    return recipe not in _WITHOUT_TEACHER and teacher not in (None, "", "none")


def model_name(summary: Mapping[str, Any]) -> str | None:
    """Return what to call the run's model: of a path its last part, of our alias the real name."""
    recorded = lookup(summary, "model")
    if not isinstance(recorded, str) or not recorded.strip("/\\"):
        return None
    last = re.split(r"[/\\]", recorded.rstrip("/\\"))[-1]
    return _ALIASES.get(last, last)


def missing_reason(summary: Mapping[str, Any], path: tuple[str, ...]) -> str:
    """Return one plain sentence on why the value at `path` is not there."""
    section, key = path[0], path[-1]
    if section in ("before", "after"):
        return "no evaluation was recorded"
    if section == "last":
        if not lookup(summary, "last"):
            return "no training step was recorded"
        if key in ("gap", "teacher_entropy", "direction"):
            if has_teacher(summary) is False:
                return (
                    "no teacher in this condition, so there is nothing to compare the student with"
                )
            return "no token had a teacher signal in the last step"
        return "the last step recorded no finite value"
    if key == "peak_memory_bytes" and lookup(summary, "tokens_per_second") is not None:
        return "not measured on this device"
    return "the run did not record it"
