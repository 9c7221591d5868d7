"""Tables of conditions as HTML, with the reason for every value that is not there."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from sdkernels.report.curves import named
from sdkernels.report.fields import COLUMNS, Cell, Head, has_teacher
from sdkernels.report.load import Run
from sdkernels.report.text import escape, typographic


def conditions(runs: Sequence[Run]) -> str:
    """Return the condition table with a footnote for every kind of missing or broken value."""
    return table(runs, COLUMNS, [[column.cell(run.summary) for column in COLUMNS] for run in runs])


def table(
    runs: Sequence[Run],
    columns: Sequence[Head],
    cells: Sequence[Sequence[Cell]],
    *,
    made_of: bool = True,
) -> str:
    """Return a table with one row per run; below it, why cells are missing.

    `cells[i]` are those of `runs[i]`, one for each column; `made_of` adds recipe and context.
    """
    heads = [
        named(index, runs) + (_made_of(run) if made_of else "") for index, run in enumerate(runs)
    ]
    names = [run.label for run in runs]
    return rows_table("Condition", heads, names, columns, cells, with_group=not made_of)


def rows_table(
    first: str,
    heads: Sequence[str],
    names: Sequence[str],
    columns: Sequence[Head],
    cells: Sequence[Sequence[Cell]],
    *,
    with_group: bool = True,
) -> str:
    """Return a table of rows with their `heads` (HTML) and `names` (text, for the footnotes).

    `with_group`: columns are called by group and title where their heads are not in sight.
    """
    groups = []
    for name, members in itertools.groupby(columns, key=lambda column: column.group):
        groups.append(f'<th scope="colgroup" colspan="{len(list(members))}">{escape(name)}</th>')
    titles = []
    for column in columns:
        unit = f"<small>{column.unit}</small>" if column.unit else ""
        titles.append(f'<th scope="col">{column.title}{unit}</th>')
    labels = _labels(columns, with_group=with_group)
    rows = []
    reasons: dict[tuple[str, str], dict[str, list[str]]] = {}
    for head, name, row in zip(heads, names, cells, strict=True):
        for label, cell in zip(labels, row, strict=True):
            if cell.why:
                by_label = reasons.setdefault((cell.shown, cell.why), {})
                by_label.setdefault(label, []).append(name)
        body = "".join(
            _cell(label, column.unit, cell)
            for label, column, cell in zip(labels, columns, row, strict=True)
        )
        rows.append(f'<tr><th scope="row">{head}</th>{body}</tr>')
    return (
        '<div class="wide"><table class="conditions"><thead>'
        f'<tr class="groups"><td></td>{"".join(groups)}</tr>'
        f'<tr><th scope="col">{first}</th>{"".join(titles)}</tr>'
        f"</thead><tbody>{''.join(rows)}</tbody></table></div>{_footnotes(reasons, len(names))}"
    )


def _labels(columns: Sequence[Head], *, with_group: bool) -> list[str]:
    """Return a name for each column that needs no head over it, as narrow screens have none."""
    return [
        f"{column.group.rsplit(', ', 1)[0]}: {column.title}"
        if with_group and column.group.strip()
        else column.title
        for column in columns
    ]


def _made_of(run: Run) -> str:
    """Return recipe, teacher and context as two small lines."""
    recipe, teacher, context = (run.summary.get(key) for key in ("recipe", "teacher", "context"))
    taught = {True: f"{teacher} teacher", False: "no teacher", None: ""}[has_teacher(run.summary)]
    lines = [" · ".join(part for part in (recipe, taught) if part)]
    if context and context != "none":
        lines.append(f"sees {context}")
    return "".join(f"<small>{escape(line)}</small>" for line in lines if line)


def _cell(title: str, unit: str, cell: Cell) -> str:
    label = f' data-label="{escape(title)}{f", {unit}" if unit else ""}"'
    if cell.why:
        return (
            f'<td{label}><span class="{cell.state}" title="{escape(cell.why)}" tabindex="0" '
            f'aria-label="{escape(cell.shown + ": " + cell.why)}">{cell.shown}</span></td>'
        )
    extra = f"<small>{cell.extra}</small>" if cell.extra else ""
    kind = ' class="apart"' if cell.state == "apart" else ""
    return f"<td{label}><span{kind}>{typographic(cell.shown)}{extra}</span></td>"


def _footnotes(reasons: dict[tuple[str, str], dict[str, list[str]]], num_runs: int) -> str:
    notes = []
    for (shown, why), columns in reasons.items():
        by_runs: dict[str, list[str]] = {}
        for title, labels in columns.items():
            by_runs.setdefault(_whose(labels, num_runs), []).append(title)
        told = "; ".join(f"{whose} ({_listed(titles)})" for whose, titles in by_runs.items())
        notes.append(f"<li>{shown} {escape(told)}: {escape(why)}.</li>")
    return f'<ul class="foot" aria-label="Missing values">{"".join(notes)}</ul>' if notes else ""


def _listed(labels: Sequence[str]) -> str:
    """Return labels as they stand in a sentence, those of a group together."""
    groups: dict[str, list[str]] = {}
    for label in labels:
        group, _, title = label.rpartition(": ")
        word = label if label[:2].isupper() else label[:1].lower() + label[1:]
        groups.setdefault(word[: len(group)], []).append(title if group else word)
    return "; ".join(
        f"{group}: {', '.join(titles)}" if group else ", ".join(titles)
        for group, titles in groups.items()
    )


def _whose(labels: list[str], num_runs: int) -> str:
    if len(labels) == num_runs and num_runs > 1:
        return "all conditions"
    return ", ".join(labels[:4]) + (f" and {len(labels) - 4} more" if len(labels) > 4 else "")
