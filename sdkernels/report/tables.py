"""The condition table as HTML, with the reason for every value that is not there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from sdkernels.report.curves import named
from sdkernels.report.fields import COLUMNS, Cell, has_teacher
from sdkernels.report.load import Run
from sdkernels.report.text import escape, typographic


def conditions(runs: Sequence[Run]) -> str:
    """Return the condition table with a footnote for every kind of missing or broken value."""
    groups = []
    for name, members in itertools.groupby(COLUMNS, key=lambda column: column.group):
        groups.append(f'<th scope="colgroup" colspan="{len(list(members))}">{name}</th>')
    heads = []
    for column in COLUMNS:
        unit = f"<small>{column.unit}</small>" if column.unit else ""
        heads.append(f'<th scope="col">{column.title}{unit}</th>')
    rows = []
    reasons: dict[tuple[str, str], dict[str, list[str]]] = {}
    for index, run in enumerate(runs):
        cells = [column.cell(run.summary) for column in COLUMNS]
        for column, cell in zip(COLUMNS, cells, strict=True):
            if cell.state != "value":
                by_title = reasons.setdefault((cell.shown, cell.why), {})
                by_title.setdefault(column.title, []).append(run.label)
        body = "".join(
            _cell(column.title, column.unit, cell)
            for column, cell in zip(COLUMNS, cells, strict=True)
        )
        rows.append(f'<tr><th scope="row">{named(index, runs)}{_made_of(run)}</th>{body}</tr>')
    return (
        '<div class="wide"><table class="conditions"><thead>'
        f'<tr class="groups"><td></td>{"".join(groups)}</tr>'
        f'<tr><th scope="col">Condition</th>{"".join(heads)}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>{_footnotes(reasons, len(runs))}"
    )


def _made_of(run: Run) -> str:
    """Return recipe, teacher and context as two small lines."""
    recipe, teacher, context = (run.summary.get(key) for key in ("recipe", "teacher", "context"))
    taught = {True: f"{teacher} teacher", False: "no teacher", None: ""}[has_teacher(run.summary)]
    lines = [" · ".join(part for part in (recipe, taught) if part)]
    if context and context != "none":
        lines.append(f"sees {context}")
    return "".join(f"<small>{escape(line)}</small>" for line in lines if line)


def _cell(title: str, unit: str, cell: Cell) -> str:
    label = f' data-label="{title}{f", {unit}" if unit else ""}"'
    if cell.state != "value":
        return (
            f'<td{label}><span class="{cell.state}" title="{escape(cell.why)}" tabindex="0" '
            f'aria-label="{escape(cell.shown + ": " + cell.why)}">{cell.shown}</span></td>'
        )
    extra = f"<small>{cell.extra}</small>" if cell.extra else ""
    return f"<td{label}><span>{typographic(cell.shown)}{extra}</span></td>"


def _footnotes(reasons: dict[tuple[str, str], dict[str, list[str]]], num_runs: int) -> str:
    notes = []
    for (shown, why), columns in reasons.items():
        by_runs: dict[str, list[str]] = {}
        for title, labels in columns.items():
            by_runs.setdefault(_whose(labels, num_runs), []).append(title.lower())
        told = "; ".join(f"{whose} ({', '.join(titles)})" for whose, titles in by_runs.items())
        notes.append(f"<li>{shown} {escape(told)}: {escape(why)}.</li>")
    return f'<ul class="foot" aria-label="Missing values">{"".join(notes)}</ul>' if notes else ""


def _whose(labels: list[str], num_runs: int) -> str:
    if len(labels) == num_runs and num_runs > 1:
        return "all conditions"
    return ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")
