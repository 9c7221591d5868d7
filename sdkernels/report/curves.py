"""Learning curves as inline SVG small multiples; their colours come from the page's style sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sdkernels.report.load import Run
from sdkernels.report.series import (
    Curves,
    Line,
    Panel,
    curves,
    step_ticks,
    style,
    tick_label,
    ticks,
)
from sdkernels.report.text import count, escape, number, typographic

_WIDTH, _HEIGHT = 340, 206
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 24, 30
_MAX_MARKED_POINTS = 12

# Marker shapes around (0, 0), one per colour, so that colour is never the only difference.
_SHAPES = (
    "M-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0 -7.2 0z",
    "M-3.3 -3.3h6.6v6.6h-6.6z",
    "M0 -4.4L4.2 3.1H-4.2z",
    "M0 -4.6L4.2 0L0 4.6L-4.2 0z",
    "M0 4.4L4.2 -3.1H-4.2z",
    "M-4.2 -1.4h2.8v-2.8h2.8v2.8h2.8v2.8h-2.8v2.8h-2.8v-2.8h-2.8z",
    "M0 -4.6L4.4 -1.4L2.7 3.8H-2.7L-4.4 -1.4z",
)


@dataclass(frozen=True)
class Axis:
    """A horizontal axis: its ends, its ticks with their labels, and what it counts."""

    first: float
    last: float
    ticks: tuple[tuple[float, str], ...]
    word: str


def section(runs: Sequence[Run]) -> str:
    """Return the legend and the panels of the learning curves as HTML, with a sentence on all that
    is not drawn.
    """
    data = curves(runs)
    if not data.panels:
        return '<p class="empty">No step was recorded, so there is nothing to draw.</p>'
    axis = _steps_axis(data)
    main = [panel for panel in data.panels if not panel.metric.more]
    more = [panel for panel in data.panels if panel.metric.more]
    parts = [legend(runs), panels(main, axis, runs)]
    if more:
        told = f"{count(len(more), 'more curve')}: {', '.join(p.metric.title for p in more)}"
        parts.append(
            f'<details class="more"><summary>{escape(told)}</summary>'
            f"{panels(more, axis, runs)}</details>"
        )
    notes = []
    if data.first_step == data.last_step:
        notes.append("Only one step was recorded, so each condition is a single point.")
    if data.thinned_to:
        notes.append(f"Long runs are drawn as {data.thinned_to} means over equal bins of steps.")
    if data.absent:
        notes.append(f"Not recorded by any condition: {', '.join(data.absent).lower()}.")
    if notes:
        parts.append(f'<p class="foot">{escape(" ".join(notes))}</p>')
    return "\n".join(parts)


def panels(drawn: Sequence[Panel], axis: Axis, runs: Sequence[Run]) -> str:
    """Return panels that share their horizontal axis, side by side."""
    return f'<div class="panels">{"".join(_figure(panel, axis, runs) for panel in drawn)}</div>'


def _steps_axis(data: Curves) -> Axis:
    shown = step_ticks(data.first_step, data.last_step)
    words = [f"step {step:,}" if index == 0 else f"{step:,}" for index, step in enumerate(shown)]
    return Axis(data.first_step, data.last_step, tuple(zip(shown, words, strict=True)), "step")


def legend(runs: Sequence[Run]) -> str:
    """Return one legend for every figure of the page."""
    if style(0, len(runs)).plain:
        return (
            f'<p class="foot">{count(len(runs), "condition")} are too many to tell apart by '
            "colour, so every line is grey. Point at a line for its name; the table above lists "
            "them all.</p>"
        )
    items = []
    for index in range(len(runs)):
        items.append(
            f'<li><button type="button" class="key" data-run="{index}" aria-pressed="false">'
            f"{named(index, runs)}</button></li>"
        )
    return f'<ul class="legend" aria-label="Conditions">{"".join(items)}</ul>'


def swatch(index: int, num_runs: int) -> str:
    """Return the little sample of a run's line and marker used in legends and tables."""
    look = style(index, num_runs)
    if look.plain:
        return ""
    return (
        f'<svg class="swatch c{look.colour} dash{look.dash}" viewBox="0 0 26 12" width="26" '
        f'height="12" aria-hidden="true"><path class="line" d="M1 6H25"/>'
        f'<path class="dot" transform="translate(13 6)" d="{_SHAPES[look.shape]}"/></svg>'
    )


def named(index: int, runs: Sequence[Run]) -> str:
    """Return a run's swatch and name, as every list of the page shows them."""
    return f'{swatch(index, len(runs))}<span class="name">{escape(runs[index].label)}</span>'


def _figure(panel: Panel, axis: Axis, runs: Sequence[Run]) -> str:
    metric = panel.metric
    return (
        f'<figure class="panel"><h3>{escape(metric.title)}</h3>{_svg(panel, axis, runs)}'
        f"<figcaption>{escape(metric.explain)}</figcaption></figure>"
    )


def _svg(panel: Panel, axis: Axis, runs: Sequence[Run]) -> str:
    first, last = axis.first, axis.last
    span = last - first

    def at_x(step: float) -> float:
        inner = _WIDTH - _LEFT - _RIGHT
        return _LEFT + (inner * (0.03 + 0.94 * (step - first) / span) if span else inner / 2)

    def at_y(value: float) -> float:
        return (
            _HEIGHT
            - _BOTTOM
            - (_HEIGHT - _TOP - _BOTTOM) * (value - panel.low) / (panel.high - panel.low)
        )

    label = f"{panel.metric.title} by {axis.word} for {count(len(panel.lines), 'condition')}"
    parts = [f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(label)}">']
    marks = ticks(panel.low, panel.high)
    right = _WIDTH - _RIGHT
    for tick in marks:
        y = at_y(tick)
        kind = "zero" if abs(tick) < 1e-12 else "grid"
        shown = typographic(tick_label(tick, marks))
        parts.append(f'<path class="{kind}" d="M{_LEFT} {y:.1f}H{right}"/>')
        parts.append(
            f'<text class="tick" x="{_LEFT - 7}" y="{y + 3.6:.1f}" text-anchor="end">{shown}</text>'
        )
    unit = panel.metric.unit or "value"
    parts.append(f'<text class="axis" x="0" y="11">{escape(unit)}</text>')
    base = _HEIGHT - _BOTTOM
    parts.append(f'<path class="base" d="M{_LEFT} {base}H{right}"/>')
    for at, shown in axis.ticks:
        parts.append(
            f'<text class="tick" x="{at_x(at):.1f}" y="{base + 16}" text-anchor="middle">'
            f"{shown}</text>"
        )
    for line in panel.lines:
        places = [(at_x(x), at_y(y)) for x, y in line.points]
        parts.append(_line(line, places, panel, axis.word, runs))
    parts.append("</svg>")
    return "".join(parts)


def _line(
    line: Line,
    places: list[tuple[float, float]],
    panel: Panel,
    word: str,
    runs: Sequence[Run],
) -> str:
    look = style(line.run, len(runs))
    name = runs[line.run].label
    path = "M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places)
    kind = "plain" if look.plain else f"c{look.colour} dash{look.dash}"
    parts = [f'<g class="series {kind}" data-run="{line.run}"><title>{escape(name)}</title>']
    parts.append(f'<path class="line" d="{path}"/>')
    isolated = len(places) == 1
    if isolated or (len(places) <= _MAX_MARKED_POINTS and not look.plain):
        unit = f" {panel.metric.unit}" if panel.metric.unit else ""
        for (x, y), (step, value) in zip(places, line.points, strict=True):
            told = escape(f"{name}, {word} {step:g}: {typographic(number(value))}{unit}")
            parts.append(
                f'<path class="dot" transform="translate({x:.1f} {y:.1f})" '
                f'd="{_SHAPES[look.shape]}"><title>{told}</title></path>'
            )
    parts.append("</g>")
    return "".join(parts)
