"""The lab's tables as rows of text: for the terminal, and as Markdown for results.md."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdkernels.lab.conditions import CONDITIONS
from sdkernels.lab.contexts import CONTEXTS
from sdkernels.lab.evaluate import PER_PROBLEM
from sdkernels.lab.expectations import Verdict
from sdkernels.lab.scales import SEVERAL_FAMILIES

Table = list[list[str]]

SHARES = ("accuracy", "pass_at_k", "step_accuracy")

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


def change_table(summary: dict[str, Any], metric: str) -> Table:
    """A row for each group of cells: changes of the metric from the base model, with intervals."""
    rows = [["condition", "problems of", "seeds", *SET_TITLES.values()]]
    for one in summary["groups"]:
        problems = f"{one['coverage']} {'+'.join(one['families'])}"
        changes = [one["sets"][name][metric]["change"] for name in SET_TITLES]
        shown = [shown_change(change, metric) for change in changes]
        title = CONDITIONS[one["condition"]].title
        rows.append([title, problems, str(len(one["seeds"])), *shown])
    return rows


def behaviour_table(summary: dict[str, Any]) -> Table:
    """A row for each group of cells: how fresh problems are answered after training."""
    names = ("guess_accuracy", "noticed", "doubted", "rescued")
    heads = ["right guesses %", "noticed %", "doubted %", "rescued %"]
    rows = [["condition", "problems of", "acc. %", "step acc. %", "waits", "entropy", *heads]]
    for one in summary["groups"]:
        fresh = one["sets"]["in_domain"]
        levels = {name: fresh[name]["level"][0] for name in PER_PROBLEM}
        rows.append(
            [
                CONDITIONS[one["condition"]].title,
                f"{one['coverage']} {'+'.join(one['families'])}",
                f"{100 * levels['accuracy']:.1f}",
                f"{100 * levels['step_accuracy']:.1f}",
                f"{levels['waits']:.2f}",
                f"{levels['entropy']:.3f}",
                *(_percent(fresh["steps"][name]) for name in names),
            ]
        )
    return rows


def shown_change(change: Sequence[float], metric: str) -> str:
    """Mean and interval; shares in percentage points."""
    share = metric in SHARES
    shown = [100 * value if share else value for value in change]
    mean, low, high = (f"{value:+.{1 if share else 2}f}" for value in shown)
    return f"{mean} [{low}, {high}]"


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """A row for each expectation."""
    rows = [["expectation", "source", "expected", "difference", "outcome"]]
    for verdict in verdicts:
        found, one = verdict.estimate, verdict.expectation
        shown = shown_change(found.as_list(), one.metric) if found else "not run"
        sign = "above 0" if one.sign > 0 else "below 0"
        rows.append([one.statement, one.source, sign, shown, verdict.outcome])
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


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.0f}"


def _signed(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:+.{digits}f}"
