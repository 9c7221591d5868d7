"""The same figures as PNG files, for a paper draft, an issue or a chat: drawn with matplotlib,
without a display.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdkernels.report.bars import accuracy_of, mean_seconds
from sdkernels.report.deciles import DECILES, decile_panels
from sdkernels.report.load import Run
from sdkernels.report.metrics import PHASES
from sdkernels.report.series import (
    DASHES,
    LIGHT_COLOURS,
    Curves,
    Panel,
    curves,
    step_ticks,
    style,
    tick_label,
    ticks,
)
from sdkernels.report.text import count, one_line, typographic

_MARKERS = ("o", "s", "^", "D", "v", "P", "p")
_PHASE_COLOURS = ("#59626f", "#cfc7b4", "#5f86b3", "#a9c6e3", "#6aa596", "#c38b5f", "#e6cda8")
_SOFT, _GRID = "#5c626b", "#e8e5de"
_MAX_ROWS = 60

_STYLE: dict[str, Any] = {
    "font.family": "DejaVu Sans",
    "font.size": 9,
    "text.parse_math": False,  # a title with two dollar signs is a title, not a formula
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.spines.left": False,
    "axes.edgecolor": _SOFT,
    "axes.labelcolor": _SOFT,
    "axes.axisbelow": True,
    "xtick.color": _SOFT,
    "ytick.color": _SOFT,
    "ytick.left": False,
    "grid.color": _GRID,
    "figure.facecolor": "white",
}


def draw(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write the plots that the runs have numbers for into `folder` and return their paths.

    `learning_curves.png`, `more_curves.png`, `entropy_deciles.png`, `accuracy.png` and
    `time_per_step.png`; one of an earlier report that has
    no numbers any more is removed, so that the folder never shows two states at once.
    """
    import matplotlib

    folder.mkdir(exist_ok=True)
    written = []
    with matplotlib.rc_context(_STYLE), warnings.catch_warnings():
        # A title may hold characters that the bundled font lacks; they come out as boxes, and the
        # page shows them.
        warnings.filterwarnings("ignore", message="Glyph .* missing from")
        for name, make in (
            ("learning_curves.png", _learning_curves),
            ("more_curves.png", _more_curves),
            ("entropy_deciles.png", _entropy_deciles),
            ("accuracy.png", _accuracy),
            ("time_per_step.png", _time_per_step),
        ):
            figure = make(runs)
            path = folder / name
            if figure is None:
                path.unlink(missing_ok=True)
                continue
            # Without a software tag the bytes depend on the numbers alone.
            figure.savefig(path, dpi=160, metadata={"Software": None})
            written.append(path)
    return written


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    figure = Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.12, h_pad=0.12))
    FigureCanvasAgg(figure)
    return figure


def _look(index: int, num_runs: int) -> dict[str, Any]:
    look = style(index, num_runs)
    if look.plain:
        return {"color": _SOFT, "linewidth": 0.6, "alpha": 0.35}
    return {
        "color": LIGHT_COLOURS[look.colour],
        "linewidth": 1.6,
        "linestyle": (0, tuple(part / 1.6 for part in DASHES[look.dash]))
        if DASHES[look.dash]
        else "solid",
    }


def _learning_curves(runs: Sequence[Run]) -> Any:
    data = curves(runs)
    return _panels([panel for panel in data.panels if not panel.metric.more], data, runs)


def _more_curves(runs: Sequence[Run]) -> Any:
    data = curves(runs)
    return _panels([panel for panel in data.panels if panel.metric.more], data, runs)


def _entropy_deciles(runs: Sequence[Run]) -> Any:
    word = "tenth of the tokens, by entropy"
    return _panels(decile_panels(runs), Curves([], 1, DECILES, None, []), runs, word)


def _panels(drawn: Sequence[Panel], data: Curves, runs: Sequence[Run], word: str = "step") -> Any:
    """Return a figure of panels that share the horizontal axis of `data`, or None without any."""
    if not drawn:
        return None
    columns = min(3, len(drawn))
    rows = math.ceil(len(drawn) / columns)
    legend_rows = 0 if style(0, len(runs)).plain else math.ceil(len(runs) / 3)
    figure = _figure(3.5 * columns, 2.5 * rows + 0.24 * legend_rows + 0.2)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes, panel in zip(grid.flat, drawn, strict=False):
        _draw_panel(axes, panel, data, runs)
        axes.set_xlabel(word)
    for axes in list(grid.flat)[len(drawn) :]:
        axes.set_axis_off()
    if legend_rows:
        _legend(figure, runs)
    return figure


def _draw_panel(axes: Any, panel: Panel, data: Curves, runs: Sequence[Run]) -> None:
    for line in panel.lines:
        xs, ys = zip(*line.points, strict=True)
        marked = (len(xs) <= 12 and len(runs) <= len(LIGHT_COLOURS) * len(DASHES)) or len(xs) == 1
        marker = _MARKERS[style(line.run, len(runs)).shape] if marked else None
        axes.plot(
            xs,
            ys,
            marker=marker,
            markersize=5,
            markeredgecolor="white",
            **_look(line.run, len(runs)),
        )
    axes.set_title(panel.metric.title, loc="left", fontsize=10, fontweight="bold")
    axes.set_ylabel(panel.metric.unit or "value")
    axes.set_ylim(panel.low, panel.high)
    marks = ticks(panel.low, panel.high)
    axes.set_yticks(marks, [typographic(tick_label(mark, marks)) for mark in marks])
    axes.grid(axis="y")
    if panel.low <= 0 <= panel.high:
        axes.axhline(0, color=_SOFT, linewidth=0.7, zorder=1)
    steps = step_ticks(data.first_step, data.last_step)
    axes.set_xticks(steps, [f"{step:,}" for step in steps])
    pad = 0.04 * (data.last_step - data.first_step) or 0.5
    axes.set_xlim(data.first_step - pad, data.last_step + pad)


def _legend(figure: Any, runs: Sequence[Run]) -> None:
    from matplotlib.lines import Line2D

    handles = [
        Line2D(
            [],
            [],
            marker=_MARKERS[style(index, len(runs)).shape],
            markersize=5,
            **_look(index, len(runs)),
        )
        for index in range(len(runs))
    ]
    labels = [one_line(run.label, 40) for run in runs]
    figure.legend(
        handles, labels, loc="outside lower center", ncols=3, frameon=False, handlelength=2.6
    )


def _rows(runs: Sequence[Run], row_inches: float) -> tuple[Any, Any, Sequence[Run]]:
    """Return a figure with one row per run (at most `_MAX_ROWS`), its axes, and the runs that are
    drawn.
    """
    drawn = runs[:_MAX_ROWS]
    figure = _figure(8.4, 1.0 + row_inches * len(drawn) + (0.2 if len(runs) > len(drawn) else 0))
    axes = figure.subplots()
    axes.set_ylim(len(drawn) - 0.4, -0.6)
    axes.set_yticks(range(len(drawn)), [one_line(run.label, 40) for run in drawn])
    axes.tick_params(axis="y", labelcolor="#1d1f23")
    axes.grid(axis="x")
    if len(runs) > len(drawn):
        axes.set_title(
            f"The first {len(drawn)} of {len(runs)} conditions", loc="left", fontsize=9, color=_SOFT
        )
    return figure, axes, drawn


def _accuracy(runs: Sequence[Run]) -> Any:
    if not any(
        accuracy_of(run, when)[0] is not None for run in runs for when in ("before", "after")
    ):
        return None
    figure, axes, drawn = _rows(runs, 0.46)
    for index, run in enumerate(drawn):
        look = style(index, len(runs))
        colour = _SOFT if look.plain else LIGHT_COLOURS[look.colour]
        for when, shift in (("before", -0.15), ("after", 0.15)):
            value, bounds = accuracy_of(run, when)
            if value is None:
                continue
            if bounds:
                axes.plot(
                    [100 * bound for bound in bounds],
                    [index + shift] * 2,
                    color=colour,
                    alpha=0.35,
                    linewidth=3,
                )
            face = colour if when == "after" else "white"
            axes.plot(
                100 * value,
                index + shift,
                "o",
                markersize=6,
                markerfacecolor=face,
                markeredgecolor=colour,
            )
    axes.set_xlim(left=0)
    axes.set_xlabel("accuracy, % (hollow: before training, filled: after; bars: 95 % intervals)")
    return figure


def _time_per_step(runs: Sequence[Run]) -> Any:
    if not any(sum(mean_seconds(run).values()) for run in runs):
        return None
    figure, axes, drawn = _rows(runs, 0.36)
    means = [mean_seconds(run) for run in drawn]
    left = [0.0] * len(drawn)
    for (key, name), colour in zip(PHASES, _PHASE_COLOURS, strict=True):
        widths = [mean.get(key, 0.0) for mean in means]
        if any(widths):
            axes.barh(
                range(len(drawn)),
                widths,
                left=left,
                height=0.56,
                color=colour,
                label=name,
                edgecolor="white",
            )
            left = [start + width for start, width in zip(left, widths, strict=True)]
    axes.set_xlabel(
        f"seconds per step, mean over {count(max(len(run.steps) for run in runs), 'step')}"
    )
    figure.legend(
        loc="outside upper center", ncols=4, frameon=False, handlelength=1, handleheight=1
    )
    return figure
