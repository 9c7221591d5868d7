"""The lab's tables as rows of text: for the terminal, and as Markdown for results.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdkernels.lab.conditions import CONDITIONS
from sdkernels.lab.contexts import CONTEXTS
from sdkernels.lab.expectations import Verdict
from sdkernels.lab.scales import SEVERAL_FAMILIES

Table = list[list[str]]

SET_TITLES = {
    "seen": "trained on",
    "in_domain": "fresh",
    "longer": "longer",
    "other": "other families",
}


def base_table(facts: dict[str, Any]) -> Table:
    """The base model without and with context, and without the word `wait`."""
    rows = [["base model", "accuracy %", "step acc. %", "waits", "length", "entropy"]]
    own = facts["sets"]["+".join(SEVERAL_FAMILIES)]
    for name, title in list(SET_TITLES.items())[1:]:
        rows.append([title, *_numbers(own[name])])
        rows.append([f"{title}, wait banned", *_numbers(facts["without_wait"][name])])
    for name in CONTEXTS:
        rows.append([f"fresh, sees {name}", *_numbers(facts["teacher"][name])])
    return rows


def gap_table(facts: dict[str, Any]) -> Table:
    """Mean gap of the base model's own responses, by context and kind of token."""
    rows = [["context", "right results", "wrong results", "wait"]]
    for name, gaps in facts["gaps"].items():
        rows.append([name, *(_signed(gaps[kind], 2) for kind in ("right", "wrong", "wait"))])
    return rows


def change_table(summary: dict[str, Any]) -> Table:
    """A row for each group of cells: changes from the base model with intervals."""
    heads = [f"{title}: accuracy" for title in SET_TITLES.values()]
    rows = [["condition", "problems", "families", "seeds", *heads, "fresh: waits", "other: waits"]]
    for one in summary["groups"]:
        cells = [_points(one["sets"][name]["accuracy"]["change"]) for name in SET_TITLES]
        for name in ("in_domain", "other"):
            mean, low, high = one["sets"][name]["waits"]["change"]
            cells.append(f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]")
        rows.append(
            [
                CONDITIONS[one["condition"]].title,
                str(one["coverage"]),
                "+".join(one["families"]),
                str(len(one["seeds"])),
                *cells,
            ]
        )
    return rows


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """A row for each expectation."""
    rows = [["expectation", "source", "outcome", "difference", "statement"]]
    for verdict in verdicts:
        found = verdict.estimate
        shown = f"{found.mean:+.3f} [{found.low:+.3f}, {found.high:+.3f}]" if found else "not run"
        one = verdict.expectation
        rows.append([one.key, one.source, verdict.outcome, shown, one.statement])
    return rows


def as_text(table: Table) -> str:
    """Aligned columns for a terminal."""
    widths = [max(len(row[at]) for row in table) for at in range(len(table[0]))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in table
    ]
    return "\n".join([lines[0], "-" * max(map(len, lines)), *lines[1:]])


def as_markdown(table: Table) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(row) + " |" for row in table]
    return "\n".join([lines[0], "|" + "---|" * len(table[0]), *lines[1:]])


def _numbers(measured: dict[str, Any]) -> list[str]:
    return [
        f"{100 * measured['accuracy']:.1f}",
        f"{100 * measured['step_accuracy']:.1f}",
        f"{measured['waits']:.2f}",
        f"{measured['length']:.1f}",
        f"{measured['entropy']:.3f}",
    ]


def _points(change: Sequence[float]) -> str:
    """A change of a share, in percentage points."""
    mean, low, high = (100 * value for value in change)
    return f"{mean:+.1f} [{low:+.1f}, {high:+.1f}]"


def _signed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:+.{digits}f}"
