"""Teacher accuracy: what `sdkernels eval --context` found, as HTML and for the terminal."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sdkernels.report import at_k
from sdkernels.report.fields import Cell, Column, as_number, interval, lookup, percent
from sdkernels.report.load import Problems, read_object
from sdkernels.report.paired import NO_DIFFERENCE
from sdkernels.report.tables import rows_table
from sdkernels.report.terminal import aligned
from sdkernels.report.text import DASH, count, escape, number, one_line, typographic

FILE = "teacher_accuracy.json"
HINT = "sdkernels eval --context reference_solution --out FOLDER"

_AGAIN = (
    "Compared with a second set of answers to the question alone: which problems this context has "
    "something to say for depends on how the first answers came out."
)
_DOUBT = "Epistemic markers"
_ONE = "1 problem"
_MARK = "*"
_SCORE = Column("", "Score", "%", ("accuracy",), percent, interval=True)
COLUMNS = (
    Column("", "Tokens", "per response", ("completion_length",), number),
    Column(_DOUBT, "as published", "per response", ("markers_published", "per_response"), number),
    Column(_DOUBT, "whole words", "per response", ("markers", "per_response"), number),
    Column(_DOUBT, "whole words", "per 1,000 tokens", ("markers", "per_1k_tokens"), number),
    Column(" ", "Entropy", "nats", ("entropy",), number),
    Column(" ", "Cut", "%", ("truncated_share",), percent),
    Column(" ", "Answers", "", ("answers",), "{:.0f}".format),
)


def load(folder: Path, problems: Problems) -> dict[str, Any] | None:
    """Return the result in `folder`, or None where there is none that can be read."""
    path = folder / FILE
    if not path.exists():
        return None
    loaded = read_object(path)
    if isinstance(loaded, str):
        problems.add(FILE, f"{loaded}; left out")
        return None
    entries = loaded.get("contexts")
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        problems.add(FILE, "holds no list of contexts; left out")
        return None
    return loaded


def section(result: Mapping[str, Any] | None) -> str:
    """Return the table, or how to get one."""
    if not result or not result["contexts"]:
        return (
            '<p class="empty">Not measured. '
            f"<code>{escape(HINT)}</code> asks the teacher and puts the answer here.</p>"
        )
    names = [_name(entry) for entry in result["contexts"]]
    told = [one_line(str(result["model"]), 60)] if result.get("model") else []
    for key, noun, tail in (("n", "problem", ""), ("k", "answer", " each")):
        amount = as_number(result.get(key))
        if amount is not None and 0 < amount < 1e12:
            told.append(count(int(amount), noun) + tail)
    columns = _columns(result)
    cells = [_cells(entry, columns) for entry in result["contexts"]]
    heads = [f'<span class="name">{escape(name)}</span>' for name in names]
    notes = [f"{', '.join(told)}."] if told else []
    if any(_again(entry) for entry in result["contexts"]):
        notes.append(f"{_MARK} {_AGAIN}")
    foot = "".join(f'<p class="foot">{escape(note)}</p>' for note in notes)
    return rows_table("Context", heads, names, (*columns, _CHANGE), cells) + foot


def names(result: Mapping[str, Any] | None) -> list[str]:
    """Return the names of the contexts in a result."""
    entries = (result or {}).get("contexts", ())
    return [name for entry in entries if isinstance(name := entry.get("context"), str)]


def teacher_table(result: Mapping[str, Any]) -> str:
    """Return the result of `teacher_accuracy` as an aligned plain-text table, with a note below
    where a change is to the second answers.
    """
    columns = _columns(result)
    several = columns[1 : len(columns) - len(COLUMNS)]
    rows = []
    for entry in result["contexts"]:
        score, *others, change = _cells(entry, columns)
        low_high = Cell(score.extra.replace(DASH, "-") or "-")
        shown = (score, low_high, change, *others)
        rows.append([cell.shown.replace(DASH, "-") for cell in shown])
    heads = (
        *(("score", "%"), ("95 %", "interval"), ("change", "points")),
        *((column.title, "%") for column in several),
        *_TERMINAL_HEADS,
    )
    shown_columns = [(*head, *cells) for head, *cells in zip(heads, *rows, strict=True)]
    table = aligned("context", [_name(entry) for entry in result["contexts"]], shown_columns)
    if any(_again(entry) for entry in result["contexts"]):
        table += "\n\n" + textwrap.fill(f"{_MARK} {_AGAIN}", 100)
    return table


# Those of COLUMNS.
_TERMINAL_HEADS = (
    ("length", "tokens"),
    ("markers", "published"),
    ("markers", "words"),
    ("markers", "per 1k"),
    ("entropy", "nats"),
    ("cut", "%"),
    ("answers", ""),
)
_CHANGE = Column(" ", "Change", "points, paired", ("change",), number)


def _columns(result: Mapping[str, Any]) -> tuple[Column, ...]:
    """Return the columns but for the change; Pass@k and Maj@k of one answer are the score."""
    k = as_number(result.get("k"))
    if k is None or not 1 < k < 1e6:
        return (_SCORE, *COLUMNS)
    return (_SCORE, *at_k.columns("", int(k), group="", unit="%")[1:], *COLUMNS)


def _cells(entry: Mapping[str, Any], columns: Sequence[Column]) -> list[Cell]:
    cells = [_cell(column, entry) for column in columns]
    return [*cells, _change(entry)]


def _cell(column: Column, entry: Mapping[str, Any]) -> Cell:
    cell = column.cell(entry)
    if cell.state == "missing":
        silent = as_number(entry.get("answers")) == 0
        why = "the context had nothing to say for any problem" if silent else "was not recorded"
        if column.path[0] in ("pass_at", "maj_at_k") and as_number(entry.get("without_context")):
            why = why if silent else "the context had nothing to say for some of the answers"
        return Cell(DASH, "missing", why)
    if column.interval and as_number(entry.get("n")) == 1:
        return Cell(cell.shown, extra=_ONE)  # it says little about any other
    return cell


def _again(entry: Mapping[str, Any]) -> bool:
    """Whether the change of `entry` is to the second answers."""
    return lookup(entry, "change", "baseline") == "second"


def _change(entry: Mapping[str, Any]) -> Cell:
    value = as_number(lookup(entry, "change", "difference"))
    bounds = interval(lookup(entry, "change", "interval"))
    if value is None or bounds is None:
        alone = entry.get("context") == "none"
        why = "the others are compared with it" if alone else "no problem has both answers"
        return Cell(DASH, "missing", why)
    mark = _MARK if _again(entry) else ""
    points = number(100 * value, signed=True) + mark
    if as_number(lookup(entry, "change", "n")) == 1:
        return Cell(points, extra=_ONE)
    if lookup(entry, "change", "better") == lookup(entry, "change", "worse") == 0:
        return Cell("0" + mark, extra=NO_DIFFERENCE)  # resampling equal numbers always gives 0
    low, high = (typographic(number(100 * bound, signed=True)) for bound in bounds)
    state = "apart" if bounds[0] > 0 or bounds[1] < 0 else "value"
    return Cell(points, state, extra=f"{low} to {high}")


def _name(entry: Mapping[str, Any]) -> str:
    name = one_line(str(entry.get("context") or "unnamed"), 40)
    settings = entry.get("settings")
    if isinstance(settings, Mapping) and settings:
        name += " (" + ", ".join(f"{key}={value}" for key, value in settings.items()) + ")"
    return one_line(name, 60)
