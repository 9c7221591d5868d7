"""The lab's figures as PNG: context by coverage, and pull against push against DASD."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdkernels.lab.conditions import CONDITIONS, GRPO, PULLS, ROUTED
from sdkernels.lab.evaluate import PER_PROBLEM
from sdkernels.lab.scales import SEVERAL_FAMILIES
from sdkernels.lab.tables import SET_TITLES
from sdkernels.report.series import LIGHT_COLOURS

_SOFT, _GRID = "#5c626b", "#e8e5de"
_MARKERS = "osD^vPX*"
_ROWS = ("accuracy", "waits")
_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _SOFT,
    "axes.axisbelow": True,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "grid.color": _GRID,
    "figure.facecolor": "white",
}

Groups = dict[tuple[str, int], dict[str, Any]]


def draw(summary: dict[str, Any], folder: Path) -> list[Path]:
    """Write the figures that the summary has numbers for; their paths."""
    import matplotlib

    groups = {
        (one["condition"], one["coverage"]): one
        for one in summary["groups"]
        if one["families"] == list(SEVERAL_FAMILIES)
    }
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    with matplotlib.rc_context(_STYLE):
        figures = {"context_by_coverage.png": _coverage(groups), "routing.png": _routing(groups)}
        for name, figure in figures.items():
            if figure is not None:
                # Without a software tag the bytes depend on the numbers alone.
                figure.savefig(folder / name, dpi=150, metadata={"Software": None})
                written.append(folder / name)
    return written


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _coverage(groups: Groups) -> Any:
    """Changes by number of training problems, a line a context, a column a problem set."""
    names = [one.name for one in (GRPO, *PULLS)]
    coverages = sorted({n for name, n in groups if name in names})
    if not coverages:
        return None
    figure = _figure(11, 5.6)
    grid = figure.subplots(len(_ROWS), len(SET_TITLES), sharex=True, sharey="row", squeeze=False)
    for row, metric in zip(grid, _ROWS, strict=True):
        for axes, (part, title) in zip(row, SET_TITLES.items(), strict=True):
            for index, name in enumerate(names):
                _line(axes, groups, name, index, coverages, part, metric)
            axes.axhline(0, color=_SOFT, linewidth=0.8)
            axes.grid(axis="y")
            if metric == _ROWS[0]:
                axes.set_title(title, loc="left", fontweight="bold", fontsize=10)
        row[0].set_ylabel(_change_label(metric))
    for axes in grid[-1]:
        axes.set_xticks(range(len(coverages)), [f"{n:,}" for n in coverages])
        axes.set_xlabel("training problems")
    handles, labels = grid[0][0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(names), frameon=False)
    return figure


def _line(
    axes: Any,
    groups: Groups,
    name: str,
    index: int,
    coverages: Sequence[int],
    part: str,
    metric: str,
) -> None:
    found = [(at, groups.get((name, n))) for at, n in enumerate(coverages)]
    points = [(at, one["sets"][part][metric]["change"]) for at, one in found if one is not None]
    if not points:
        return
    scale = 100 if metric == "accuracy" else 1
    shift = 0.07 * (index - 2)  # side by side, so that the intervals can be told apart
    xs = [at + shift for at, _ in points]
    means = [scale * change[0] for _, change in points]
    axes.errorbar(
        xs,
        means,
        yerr=_bars([change for _, change in points], scale),
        color=LIGHT_COLOURS[index],
        marker=_MARKERS[index],
        markersize=4.5,
        markeredgecolor="white",
        linewidth=1.4,
        elinewidth=0.9,
        label=CONDITIONS[name].title,
    )


def _routing(groups: Groups) -> Any:
    """Levels after training of GRPO, pull, push and DASD, one panel a metric."""
    routed = [one.name for one in ROUTED]
    coverage = next((n for name, n in groups if name in routed), None)
    if coverage is None:
        return None
    names = [name for name in (GRPO.name, "pull_solution", *routed) if (name, coverage) in groups]
    rows = [(name, groups[name, coverage]) for name in names]
    metrics = ("accuracy", "step_accuracy", "waits", "entropy")
    figure = _figure(11, 1.2 + 0.42 * len(rows))
    panels = figure.subplots(1, len(metrics), sharey=True)
    for axes, metric in zip(panels, metrics, strict=True):
        for index, part in enumerate(("in_domain", "longer", "other")):
            _dots(axes, rows, index, part, metric)
        axes.axvline(0, color=_SOFT, linewidth=0.8)
        axes.grid(axis="x")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel(_change_label(metric))
    panels[0].set_yticks(range(len(rows)), [CONDITIONS[name].title for name, _ in rows])
    panels[0].invert_yaxis()
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False)
    return figure


def _dots(
    axes: Any, rows: Sequence[tuple[str, dict[str, Any]]], index: int, part: str, metric: str
) -> None:
    scale = 100 if metric.endswith("accuracy") else 1
    changes = [[scale * v for v in one["sets"][part][metric]["change"]] for _, one in rows]
    axes.errorbar(
        [change[0] for change in changes],
        [at + 0.2 * (index - 1) for at in range(len(rows))],
        xerr=_bars(changes),
        color=LIGHT_COLOURS[index + 1],
        marker=_MARKERS[index],
        markersize=5,
        markeredgecolor="white",
        linestyle="none",
        elinewidth=1,
        label=SET_TITLES[part],
    )


def _bars(changes: Sequence[Sequence[float]], scale: float = 1) -> list[list[float]]:
    """Lengths below and above the means; a percentile interval may miss its mean by a rounding."""
    return [
        [max(0.0, scale * (mean - low)) for mean, low, _ in changes],
        [max(0.0, scale * (high - mean)) for mean, _, high in changes],
    ]


def _change_label(metric: str) -> str:
    units = {"accuracy": "accuracy, points", "step_accuracy": "step accuracy, points"}
    return "change in " + units.get(metric, PER_PROBLEM[metric])
