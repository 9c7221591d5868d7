"""Read run folders as they are, damaged or not: what can be read is returned, the rest is noted."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdkernels.report.fields import as_number, interval
from sdkernels.report.metrics import MEAN_KEYS, METRICS, PHASES
from sdkernels.report.text import count, number, one_line
from sdkernels.train.strict_json import restore

# Anything beyond is treated like an infinity: it would only flatten every axis it is drawn on.
DRAWABLE = 1e30
TOKEN_COLUMNS = ("logp", "teacher_logp", "gap", "entropy", "teacher_entropy", "direction")

# Every number of a metrics line that a report uses; the check covers all.
_STEP_KEYS = tuple(
    dict.fromkeys(
        (
            *(metric.key for metric in METRICS),
            *MEAN_KEYS,
            *("learning_rate", "marker_count", "num_tokens", "tokens_per_second"),
            "peak_memory_bytes",
        )
    )
)
_EVAL_KEYS = ("accuracy", "completion_length", "markers_per_1k", "entropy", "n", "k")


class Problems:
    """What could not be read or shown, grouped so that a thousand bad lines make one entry."""

    def __init__(self) -> None:
        self._lines: dict[tuple[str, str], list[int]] = {}

    def add(self, where: str, what: str, line: int | None = None) -> None:
        """Record `what` about the file `where`, relative to the report's folder; lines from 1."""
        lines = self._lines.setdefault((where, what), [])
        if line is not None:
            lines.append(line)

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[str]:
        for (where, what), lines in self._lines.items():
            yield f"{where}{_line_list(lines)}: {what}"


def _line_list(lines: list[int]) -> str:
    if not lines:
        return ""
    if len(lines) == 1:
        return f" line {lines[0]}"
    shown = ", ".join(str(line) for line in lines[:4])
    return f" lines {shown}" + (
        f" and {count(len(lines) - 4, 'more line')}" if len(lines) > 4 else ""
    )


@dataclass(frozen=True)
class RolloutRef:
    """Where one recorded rollout stands in `tokens.jsonl`, with what choosing among them needs."""

    offset: int
    line: int
    step: int
    example_id: str
    num_tokens: int
    success: bool | None = None


@dataclass(frozen=True)
class TokenRecord:
    """One rollout with its per-token numbers; each list is as long as `tokens`.

    A value is None where the run has none. `unreadable` counts those that were neither null nor a
    finite number; they are None here too.
    """

    step: int
    example_id: str
    success: bool | None
    prompt: str | None
    teacher_prompt: str | None
    tokens: list[str]
    columns: dict[str, list[float | None] | None]
    marker: list[bool]
    unreadable: int = 0


@dataclass
class Run:
    """One run folder: its summary with defaults, its steps in order, its recorded rollouts, and the
    scores of each problem `before` and `after` training.
    """

    path: Path
    where: str
    summary: dict[str, Any]
    steps: list[dict[str, Any]] = field(default_factory=list)
    rollouts: list[RolloutRef] = field(default_factory=list)
    label: str = ""
    problems: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    @property
    def record(self) -> dict[str, Any]:
        """The summary, and under `mean` the mean over all steps of each metric that has one."""
        return {**self.summary, "mean": self.means}

    @property
    def means(self) -> dict[str, float]:
        """Means over the recorded steps of the metrics that the analysis tables show."""
        found = {key: [value for _, value in self.series(key)] for key in MEAN_KEYS}
        return {key: sum(values) / len(values) for key, values in found.items() if values}

    @property
    def condition(self) -> str:
        """The condition's name, as the run wrote it."""
        return str(self.summary["condition"])

    def series(self, key: str, scale: float = 1.0) -> list[tuple[int, float]]:
        """Return the drawable `(step, value)` pairs of one metric."""
        pairs = ((step["step"], step.get(key)) for step in self.steps)
        return [
            (at, float(scale * value))
            for at, value in pairs
            if value is not None and abs(value) < DRAWABLE
        ]


def is_run(folder: Path) -> bool:
    """Tell whether `folder` holds a file that a run writes; a study's summary does not count."""
    if has_lines(folder):
        return True
    summary = folder / "summary.json"
    return summary.is_file() and "conditions" not in read_object(summary)


def has_lines(folder: Path) -> bool:
    """Tell whether `folder` holds one of the two files that only a run writes."""
    return (folder / "metrics.jsonl").is_file() or (folder / "tokens.jsonl").is_file()


def read_object(path: Path) -> dict[str, Any] | str:
    """Return the JSON object in the file, or a str that says why there is none."""
    try:
        loaded = _decode(path.read_bytes())
    except OSError as error:
        return f"cannot be read ({error.strerror or error})"
    except ValueError as error:
        return f"is not valid JSON ({error})"
    return loaded if isinstance(loaded, dict) else f"holds a {type(loaded).__name__}, not an object"


def _decode(raw: bytes) -> Any:
    try:
        return restore(json.loads(raw.decode("utf-8")))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def load_run(folder: Path, where: str, problems: Problems) -> Run:
    """Return the run in `folder`; problems name its files with the prefix `where`."""
    run = Run(folder, where, _load_summary(folder, where, problems))
    run.steps = _load_steps(folder / "metrics.jsonl", f"{where}metrics.jsonl", problems)
    run.rollouts = _index_rollouts(folder / "tokens.jsonl", f"{where}tokens.jsonl", problems)
    for when in ("before", "after"):
        run.problems[when] = _load_problems(
            folder / f"{when}.json", f"{where}{when}.json", problems
        )
    if run.steps and not run.summary.get("last"):
        run.summary["last"] = run.steps[-1]
    for key in ("tokens_per_second", "peak_memory_bytes"):
        if run.summary.get(key) is None and run.steps:
            run.summary[key] = run.steps[-1].get(key)
    steps = as_number(run.summary.get("steps"))
    if steps is None or not 0 <= steps < DRAWABLE:
        steps = run.steps[-1]["step"] if run.steps else 0
    run.summary["steps"] = int(steps)
    return run


def _load_summary(folder: Path, where: str, problems: Problems) -> dict[str, Any]:
    path, name = folder / "summary.json", f"{where}summary.json"
    if path.exists():
        loaded = read_object(path)
        if isinstance(loaded, str):
            problems.add(name, f"{loaded}; left out")
            loaded = {}
    else:
        problems.add(name, "is missing: the run did not finish; what its steps recorded is shown")
        loaded = {}
    for key in ("condition", "title", "recipe", "context", "teacher", "model"):
        if loaded.get(key) is not None and not isinstance(loaded[key], str):
            problems.add(name, f"{key} is not a text; left out")
            loaded[key] = None
    for key in ("before", "after", "last", "config", "versions"):
        if loaded.get(key) is not None and not isinstance(loaded[key], dict):
            problems.add(name, f"{key} is not an object; left out")
            loaded[key] = None
    check = _NumberCheck(name, problems)
    check(loaded, ("tokens_per_second", "peak_memory_bytes", "seconds_total"))
    check(loaded.get("last") or {}, _STEP_KEYS, "last.")
    for section in ("before", "after"):
        values = loaded.get(section) or {}
        check(values, _EVAL_KEYS, f"{section}.")
        if values.get("accuracy_ci") is not None and interval(values["accuracy_ci"]) is None:
            problems.add(name, f"{section}.accuracy_ci is not two numbers in order; left out")
    loaded["condition"] = loaded.get("condition") or folder.resolve().name
    loaded["title"] = loaded.get("title") or loaded["condition"]
    return loaded


def _load_problems(path: Path, name: str, problems: Problems) -> list[dict[str, Any]]:
    """The problems of an evaluation with their scores; none if it was not made or not readable."""
    if not path.exists():
        return []
    loaded = read_object(path)
    if isinstance(loaded, str):
        problems.add(name, f"{loaded}; left out")
        return []
    entries = loaded.get("per_example")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        problems.add(name, "holds no list of problems; left out")
        return []
    return entries


class _NumberCheck:
    """Notes what should be a finite number in a file and is not; drops what is no number."""

    def __init__(self, name: str, problems: Problems) -> None:
        self.name = name
        self.problems = problems

    def __call__(
        self,
        values: dict[str, Any],
        keys: tuple[str, ...],
        prefix: str = "",
        line: int | None = None,
    ) -> None:
        for key in keys:
            if values.get(key) is None:
                continue
            value = as_number(values[key])
            if value is None:
                values[key] = None
                self.problems.add(self.name, f"{prefix}{key} is not a number; left out", line)
            elif not abs(value) < DRAWABLE:
                what = f"{prefix}{key} is {number(value)}; no point is drawn for it"
                self.problems.add(self.name, what, line)


def _json_lines(
    path: Path, name: str, problems: Problems
) -> Iterator[tuple[int, int, dict[str, Any]]]:
    """Yield `(byte offset, line number, object)` for each readable line; note every other one."""
    try:
        with path.open("rb") as file:
            offset = 0
            for line, raw in enumerate(file, 1):
                start, offset = offset, offset + len(raw)
                if not raw.strip():
                    continue
                try:
                    value = _decode(raw)
                except ValueError:
                    whole = raw.endswith(b"\n")
                    what = "is not valid JSON" if whole else "is cut off: the run stopped there"
                    problems.add(name, f"{what}; left out", line)
                    continue
                if isinstance(value, dict):
                    yield start, line, value
                else:
                    problems.add(name, "is not a JSON object; left out", line)
    except OSError as error:
        problems.add(name, f"cannot be read ({error.strerror or error}); what came before is shown")


def _load_steps(path: Path, name: str, problems: Problems) -> list[dict[str, Any]]:
    if not path.exists():
        problems.add(name, "is missing, so there are no learning curves for this run")
        return []
    steps: dict[int, dict[str, Any]] = {}
    check = _NumberCheck(name, problems)
    for _, line, values in _json_lines(path, name, problems):
        step = _finite(values.get("step"))
        if step is None:
            problems.add(name, "has no step number; left out", line)
            continue
        values["step"] = int(step)
        if values["step"] in steps:
            problems.add(name, "repeats a step (a resumed run); the later line is shown", line)
        check(values, _STEP_KEYS, line=line)
        seconds = values.get("seconds")
        values["seconds"] = dict(seconds) if isinstance(seconds, dict) else {}
        check(values["seconds"], tuple(key for key, _ in PHASES), "seconds.", line)
        steps[values["step"]] = values
    if not steps:
        problems.add(name, "holds no readable step")
    return [steps[step] for step in sorted(steps)]


def _index_rollouts(path: Path, name: str, problems: Problems) -> list[RolloutRef]:
    if not path.exists():
        problems.add(name, "is missing, so there is no token heat-map for this run")
        return []
    found = []
    for offset, line, values in _json_lines(path, name, problems):
        record = parse_rollout(values)
        if isinstance(record, str):
            problems.add(name, f"{record}; left out", line)
            continue
        size = len(record.tokens)
        found.append(RolloutRef(offset, line, record.step, record.example_id, size, record.success))
    if not found:
        problems.add(name, "holds no readable rollout")
    return found


def read_rollout(run: Run, ref: RolloutRef) -> TokenRecord:
    """Return the rollout at `ref`; the index holds only rollouts that parse."""
    with (run.path / "tokens.jsonl").open("rb") as file:
        file.seek(ref.offset)
        record = parse_rollout(_decode(file.readline()))
    if isinstance(record, str):
        raise ValueError(
            f"{run.where}tokens.jsonl line {ref.line} changed while the report was made: {record}"
        )
    return record


def parse_rollout(values: dict[str, Any]) -> TokenRecord | str:
    """Return one line of `tokens.jsonl` as a record, or a str that says what is wrong with it."""
    tokens = values.get("tokens")
    if not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens):
        return "tokens is not a list of texts"
    if not tokens:
        return "the rollout has no tokens"
    columns: dict[str, list[float | None] | None] = {}
    unreadable = 0
    for key in TOKEN_COLUMNS:
        column = values.get(key)
        if column is None:
            columns[key] = None
            continue
        if not isinstance(column, list) or len(column) != len(tokens):
            size = len(column) if isinstance(column, list) else type(column).__name__
            return f"{key} has {size} values for {count(len(tokens), 'token')}"
        finite = [_finite(value) for value in column]
        columns[key] = finite
        unreadable += finite.count(None) - column.count(None)
    marker = values.get("marker")
    if marker is not None and (not isinstance(marker, list) or len(marker) != len(tokens)):
        return f"marker does not have one value for each of {count(len(tokens), 'token')}"
    return TokenRecord(
        step=int(_finite(values.get("step")) or 0),
        example_id=one_line(str(values.get("example_id", "")), 40) or "unnamed",
        success=values["success"] if isinstance(values.get("success"), bool) else None,
        prompt=_text_or_none(values.get("prompt_text")),
        teacher_prompt=_text_or_none(values.get("teacher_prompt_text")),
        tokens=tokens,
        columns=columns,
        marker=[bool(flag) for flag in marker] if marker else [False] * len(tokens),
        unreadable=unreadable,
    )


def _finite(value: Any) -> float | None:
    found = as_number(value)
    return found if found is not None and math.isfinite(found) else None


def _text_or_none(value: Any) -> str | None:
    return value if isinstance(value, str) else None
