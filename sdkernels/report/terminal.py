"""The condition table as plain text, for the end of a run: aligned, piped or not, on wide and
narrow terminals.
"""

from __future__ import annotations

import shutil
import sys
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any

from sdkernels.report.fields import COLUMNS, Cell, lookup
from sdkernels.report.text import display_width, one_line
from sdkernels.train.strict_json import restore

_MAX_WIDTH = 120
_MIN_WIDTH = 40
_SPACE = "  "
_MAX_NAME = 32

# Two header lines per column, short enough that the usual table stays within 120 cells.
_HEADS = {
    ("last", "loss"): ("loss", ""),
    ("last", "gap"): ("gap", "nats"),
    ("last", "entropy"): ("entropy", "student"),
    ("last", "teacher_entropy"): ("entropy", "teacher"),
    ("last", "markers_per_1k"): ("markers", "per 1k"),
    ("last", "completion_length"): ("length", "tokens"),
    ("before", "accuracy"): ("acc. %", "before"),
    ("after", "accuracy"): ("acc. %", "after"),
    ("tokens_per_second",): ("speed", "tokens/s"),
    ("peak_memory_bytes",): ("memory", "peak GiB"),
}


def terminal_table(summaries: Sequence[Mapping[str, Any]], *, width: int | None = None) -> str:
    """Return the run summaries as an aligned plain-text table, without a trailing newline.

    Loss, gap, entropies (nats), markers and length are those of the last training step.

    Args:
        summaries: the `summary.json` objects of the runs, in the order to show them.
        width: cells to fit into, at least 40. Default: the terminal's, at most 120, and 120 when
        piped. A table that
            does not fit is continued below, each part with the condition's name in front.
    """
    if not summaries:
        return "No condition was run."
    summaries = [restore(summary) for summary in summaries]
    width = _fitting(width)
    cells = [[column.cell(summary) for column in COLUMNS] for summary in summaries]
    names = [
        one_line(str(lookup(summary, "condition") or "unnamed"), min(_MAX_NAME, width // 2))
        for summary in summaries
    ]
    columns = [
        [*_HEADS[column.path], *(_shown(row[at]) for row in cells)]
        for at, column in enumerate(COLUMNS)
    ]
    parts = [aligned("condition", names, columns, width=width)]
    return "\n\n".join(parts + _footnotes(names, cells, width))


def aligned(
    first: str, names: Sequence[str], columns: Sequence[Sequence[str]], *, width: int | None = None
) -> str:
    """Return rows with their `names`, numbers right-aligned; continued below where they don't fit.

    Each column starts with its two header lines.
    """
    left = [first, "", *names]
    blocks = _blocks([_lines(column) for column in columns], left, _fitting(width))
    return "\n\n".join(_table(left, block) for block in blocks)


def _fitting(width: int | None) -> int:
    if width is None:
        width = (
            shutil.get_terminal_size((_MAX_WIDTH, 24)).columns
            if sys.stdout.isatty()
            else _MAX_WIDTH
        )
        width = min(_MAX_WIDTH, width)
    return max(_MIN_WIDTH, width)


def _lines(lines: Sequence[str]) -> list[str]:
    """Return one column, all lines right-aligned to the same width."""
    size = max(map(display_width, lines))
    return [" " * (size - display_width(line)) + line for line in lines]


def _shown(cell: Cell) -> str:
    """Return the cell in ASCII: a long run must not end in the encoding error of a pipe."""
    return "-" if cell.state == "missing" else cell.shown


def _blocks(
    columns: Sequence[list[str]], names: Sequence[str], width: int
) -> list[list[list[str]]]:
    """Split the columns into runs that fit beside the names; a column wider than the rest stands
    alone.
    """
    room = width - max(map(display_width, names))
    blocks: list[list[list[str]]] = [[]]
    used = 0
    for column in columns:
        size = len(_SPACE) + display_width(column[0])
        if blocks[-1] and used + size > room:
            blocks.append([])
            used = 0
        blocks[-1].append(column)
        used += size
    return blocks


def _table(names: Sequence[str], columns: Sequence[Sequence[str]]) -> str:
    size = max(map(display_width, names))
    left = [name + " " * (size - display_width(name)) for name in names]
    lines = [_SPACE.join(line) for line in zip(left, *columns, strict=True)]
    rule = "-" * max(map(display_width, lines))
    return "\n".join(line.rstrip() for line in [*lines[:2], rule, *lines[2:]])


def _footnotes(names: Sequence[str], cells: Sequence[Sequence[Cell]], width: int) -> list[str]:
    """Return why values are missing or broken, one paragraph per reason, as the only element of a
    list.
    """
    reasons: dict[tuple[str, str], list[str]] = {}
    for name, row in zip(names, cells, strict=True):
        for cell in row:
            if cell.state != "value":
                whose = reasons.setdefault((_shown(cell), cell.why), [])
                if name not in whose:
                    whose.append(name)
    notes = []
    for (shown, why), whose in reasons.items():
        told = ", ".join(whose[:4]) + (f" and {len(whose) - 4} more" if len(whose) > 4 else "")
        note = f"{shown} {why} ({told})"
        notes.append(textwrap.fill(note, width, subsequent_indent="  ", break_on_hyphens=False))
    return ["\n".join(notes)] if notes else []
