"""Table cells: where a value stands in a run, how it is shown, and why it may be missing."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from sdkernels.report import text

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
    """One table cell. `state` is `value`, `apart` (a difference whose interval leaves out 0), `bad`
    (NaN or infinity) or `missing`; `why` explains the last two.
    """

    shown: str
    state: str = "value"
    why: str = ""
    extra: str = ""


@dataclass(frozen=True)
class Head:
    """Head of a table's column: what stands over it and over its group."""

    group: str
    title: str
    unit: str


@dataclass(frozen=True)
class Column(Head):
    """A column whose cells are values of the run's summary, for the page and for the terminal."""

    path: tuple[str, ...]
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


def percent(value: float) -> str:
    """Return a share in percent with one decimal."""
    return f"{100 * value:.1f}"


def signed(value: float) -> str:
    """Return a number with its sign."""
    return text.number(value, signed=True)


def _gib(value: float) -> str:
    return f"{value / 2**30:.2f}"


COLUMNS = (
    Column("Last training step", "Loss", "", ("last", "loss"), text.number),
    Column("Last training step", "Gap", "nats", ("last", "gap"), signed),
    Column("Last training step", "Student entropy", "nats", ("last", "entropy"), text.number),
    Column(
        "Last training step", "Teacher entropy", "nats", ("last", "teacher_entropy"), text.number
    ),
    Column("Last training step", "Markers", "per 1k", ("last", "markers_per_1k"), text.number),
    Column("Last training step", "Length", "tokens", ("last", "completion_length"), text.number),
    Column("Evaluation", "Accuracy before", "%", ("before", "accuracy"), percent, interval=True),
    Column("Evaluation", "Accuracy after", "%", ("after", "accuracy"), percent, interval=True),
    Column("Cost", "Speed", "tokens/s", ("tokens_per_second",), text.number),
    Column("Cost", "Peak memory", "GiB", ("peak_memory_bytes",), _gib),
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
        if not lookup(summary, section):
            return "no evaluation was recorded"
        return "the evaluation recorded none"
    if section in ("last", "mean"):
        if not lookup(summary, "last"):
            return "no training step was recorded"
        return _reason_in_steps(summary, key, "last" if section == "last" else "any")
    if key == "peak_memory_bytes" and lookup(summary, "tokens_per_second") is not None:
        return "not measured on this device"
    return "the run did not record it"


def _reason_in_steps(summary: Mapping[str, Any], key: str, which: str) -> str:
    """Why the metric `key` is not in the `last` or in `any` step."""
    step = "the last step" if which == "last" else "any step"
    of_teacher = key.startswith(("gap", "teacher_entropy", "kl_")) or key == "direction"
    if of_teacher and has_teacher(summary) is False:
        return "no teacher in this condition, so there is nothing to compare the student with"
    verdict = key.rpartition("_")[2]
    if verdict in ("correct", "wrong"):
        having = " had a teacher signal" if of_teacher else ""
        return f"no rollout of {step} verified as {verdict}{having or ' was recorded'}"
    if of_teacher:
        return f"no token had a teacher signal in {step}"
    if which == "any":
        return "no step recorded it"
    return "the last step recorded no value"
