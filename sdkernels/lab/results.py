"""Write what a run found: summary.json, results.md, plots; and the tables for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from sdkernels.lab import plots, tables
from sdkernels.lab.conditions import Cell
from sdkernels.lab.expectations import expectations, judge
from sdkernels.lab.scales import Scale
from sdkernels.lab.summary import Results
from sdkernels.train.records import write_json

NOTE = (
    "Changes are from the base model on the same problems, with 95 % bootstrap intervals over "
    "seeds and problems; accuracies in percentage points. One base model: the intervals do not "
    "cover how another one would have turned out."
)


def write_results(scale: Scale, output: Path, cells: Sequence[Cell]) -> str:
    """Write the summary of the cells that are done; the tables as text.

    Raises:
        ValueError: none is done.
    """
    results = Results(output, cells)
    summary = results.summary()
    verdicts = [judge(one, results) for one in expectations(scale)]
    summary["expectations"] = [
        {
            "statement": one.expectation.statement,
            "source": one.expectation.source,
            "metric": one.expectation.metric,
            "expected_sign": one.expectation.sign,
            "difference": one.estimate.as_list() if one.estimate else None,
            "outcome": one.outcome,
        }
        for one in verdicts
    ]
    summary["note"] = NOTE
    write_json(output / "summary.json", summary)
    drawn = plots.draw(summary, output / "plots")
    parts = {
        "The base model": tables.base_table(results.facts),
        "Gap of its own responses, nats": tables.gap_table(results.facts),
        "Change in accuracy, points": tables.change_table(summary, "accuracy"),
        "Change in waits per response": tables.change_table(summary, "waits"),
        "Fresh problems after training": tables.behaviour_table(summary),
        "Expectations": tables.verdict_table(verdicts),
    }
    page = [f"# sdkernels lab, scale {scale.name}", NOTE]
    for title, table in parts.items():
        page += [f"## {title}", tables.as_markdown(table)]
    page += [f"![{path.stem}](plots/{path.name})" for path in drawn]
    (output / "results.md").write_text("\n\n".join(page) + "\n", encoding="utf-8")
    return "\n\n".join(f"{title}\n{tables.as_text(table)}" for title, table in parts.items())
