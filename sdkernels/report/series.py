"""Learning curves as data: which panels a study has, and the lines in each. Drawn as SVG and by
matplotlib.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

from sdkernels.report.load import Run
from sdkernels.report.metrics import METRICS, Metric

Point = tuple[float, float]

# Ink, orange, blue, teal, wine, violet, brown. Chosen so that any two stay apart under simulated
# deuteranopia, protanopia and tritanopia (OKLab distance of 0.08 or more) and from the paper
# (contrast of 3 to 1 or more).
LIGHT_COLOURS = ("#24272c", "#dd7500", "#1b50b8", "#0ea5a0", "#9a1750", "#b574e0", "#9e6220")
DARK_COLOURS = ("#ece9e4", "#f2a03d", "#5b8df5", "#3fcfb8", "#d14b7f", "#c9a3f2", "#a08a3a")
DASHES: tuple[tuple[float, ...], ...] = ((), (6, 3), (1.5, 2.5))
MAX_TELLABLE = len(LIGHT_COLOURS) * len(DASHES)

_POINT_BUDGET = 60_000
_MAX_POINTS = 120


@dataclass(frozen=True)
class Style:
    """How a run's line looks everywhere: colour and marker shape by index, dash pattern; `plain` is
    thin grey.
    """

    colour: int
    shape: int
    dash: int
    plain: bool = False


def style(index: int, num_runs: int) -> Style:
    """Return the style of run `index`; plain grey with more runs than can be told apart."""
    if num_runs > MAX_TELLABLE:
        return Style(0, 0, 0, plain=True)
    size = len(LIGHT_COLOURS)
    return Style(index % size, index % size, index // size)


@dataclass(frozen=True)
class Line:
    """One run's curve in a panel; `points` may be binned means when the run has very many steps."""

    run: int
    points: list[Point]


@dataclass(frozen=True)
class Panel:
    """One small multiple: a metric, its lines, and the value range of its axis."""

    metric: Metric
    lines: list[Line]
    low: float
    high: float


@dataclass(frozen=True)
class Curves:
    """All panels, the step range they share, what was thinned and which metrics nobody recorded."""

    panels: list[Panel]
    first_step: float
    last_step: float
    thinned_to: int | None
    absent: list[str]


def curves(runs: Sequence[Run]) -> Curves:
    """Return the panels for the metrics that at least one run recorded, with common axes where they
    compare.
    """
    limit = max(20, min(_MAX_POINTS, _POINT_BUDGET // max(1, len(runs) * len(METRICS))))
    found: dict[str, list[Line]] = {}
    thinned = False
    for metric in METRICS:
        lines = []
        for index, run in enumerate(runs):
            points = run.series(metric.key, metric.scale)
            if points:
                thinned |= len(points) > limit
                lines.append(Line(index, _thin(points, limit)))
        if lines:
            found[metric.key] = lines
    absent = [metric.title for metric in METRICS if metric.key not in found]
    if "reward" in found and "accuracy" in found and _same(found["reward"], found["accuracy"]):
        del found["reward"]
    entropies = [line for key in ("entropy", "teacher_entropy") for line in found.get(key, [])]
    panels = []
    for metric in METRICS:
        if metric.key in found:
            shared = (
                entropies if metric.key in ("entropy", "teacher_entropy") else found[metric.key]
            )
            panels.append(Panel(metric, found[metric.key], *limits(shared, metric)))
    steps = [x for lines in found.values() for line in lines for x, _ in line.points]
    return Curves(
        panels, min(steps, default=0), max(steps, default=0), limit if thinned else None, absent
    )


def _same(rewards: list[Line], accuracies: list[Line]) -> bool:
    """Tell whether the reward is the accuracy (a 0/1 reward), so that one panel says both."""
    scaled = [Line(line.run, [(x, 100 * y) for x, y in line.points]) for line in rewards]
    return len(scaled) == len(accuracies) and all(
        a.run == b.run
        and len(a.points) == len(b.points)
        and all(
            x == u and math.isclose(y, v, abs_tol=1e-6)
            for (x, y), (u, v) in zip(a.points, b.points, strict=True)
        )
        for a, b in zip(scaled, accuracies, strict=True)
    )


def _thin(points: Sequence[tuple[int, float]], limit: int) -> list[Point]:
    """Return at most `limit` points: means over equal bins of consecutive steps."""
    if len(points) <= limit:
        return [(float(x), y) for x, y in points]
    edges = [round(i * len(points) / limit) for i in range(limit + 1)]
    bins = [points[a:b] for a, b in itertools.pairwise(edges)]
    return [
        (sum(x for x, _ in part) / len(part), sum(y for _, y in part) / len(part)) for part in bins
    ]


def limits(lines: Sequence[Line], metric: Metric) -> tuple[float, float]:
    """Return the range to draw: a little more than the lines, with 0 where it means something."""
    values = [y for line in lines for _, y in line.points]
    low, high = min(values), max(values)
    if metric.unit.startswith("%") or (low >= 0 and low <= 0.4 * high):
        low = min(low, 0.0)
    if metric.key.startswith(("gap", "direction")) and metric.key != "gap_abs":
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low < 1e-9 * max(1.0, abs(high)):
        pad = max(0.05 * abs(high), 0.5 if high == 0 else 0.0) or 0.5
        return (low if low == 0 else low - pad, high + pad)
    pad = 0.06 * (high - low)
    return (low if low == 0 else low - pad, high if high == 0 else high + pad)


def ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Return round numbers within `[low, high]`, about `wanted` of them."""
    if not (math.isfinite(low) and math.isfinite(high)) or high <= low:
        return [low]
    raw = (high - low) / wanted
    power = 10.0 ** math.floor(math.log10(raw))
    unit = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= raw * 0.999)
    first, last = math.ceil(low / unit - 1e-9), math.floor(high / unit + 1e-9)
    return [index * unit for index in range(first, last + 1)]


def step_ticks(first: float, last: float) -> list[int]:
    """Return whole steps for the horizontal axis: each one when there are few."""
    if last - first <= 6:
        return list(range(math.floor(first), math.ceil(last) + 1))
    return sorted({round(tick) for tick in ticks(first, last, 5)})


def tick_label(value: float, all_ticks: Sequence[float]) -> str:
    """Return `value` with as many decimals as the spacing of `all_ticks` needs."""
    if len(all_ticks) < 2:
        return f"{value:g}"
    unit = abs(all_ticks[1] - all_ticks[0])
    size = max(abs(tick) for tick in all_ticks)
    if size >= 1e6 or unit < 1e-4:
        return f"{value:.1e}" if value else "0"
    decimals = next(d for d in range(7) if abs(round(unit, d) - unit) < 1e-6 * unit)
    return f"{value:,.{decimals}f}"
