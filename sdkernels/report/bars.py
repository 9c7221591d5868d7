"""Rows of bars as HTML: accuracy with its intervals, and where the seconds of a step go."""

from __future__ import annotations

from collections.abc import Sequence

from sdkernels.report.curves import named
from sdkernels.report.fields import as_number, interval, lookup
from sdkernels.report.load import Run
from sdkernels.report.metrics import PHASES
from sdkernels.report.series import style
from sdkernels.report.text import DASH, count, escape, number

_AXIS_ENDS = (0.02, 0.04, 0.08, 0.12, 0.2, 0.4, 0.6, 0.8, 1.0)


def accuracy(runs: Sequence[Run]) -> str:
    """Return accuracy before and after training, one row per condition, on one axis from 0."""
    known = [accuracy_of(run, when) for run in runs for when in ("before", "after")]
    values = [value for value, _ in known if value is not None]
    if not values:
        return '<p class="empty">No evaluation was recorded.</p>'
    top = max(values + [bounds[1] for _, bounds in known if bounds])
    end = next((end for end in _AXIS_ENDS if end >= top - 1e-9), 1.0)
    rows = []
    for index, run in enumerate(runs):
        look = style(index, len(runs))
        colour = "plain" if look.plain else f"c{look.colour}"
        tracks = "".join(_track(run, when, end) for when in ("before", "after"))
        rows.append(
            f'<li><span class="who">{named(index, runs)}</span>'
            f'<span class="tracks {colour}">{tracks}</span></li>'
        )
    marks = [25 * quarter for quarter in range(5)]
    axis = "".join(
        f'<span style="left:{mark}%">{100 * end * mark / 100:g}{" %" if mark == 100 else ""}</span>'
        for mark in marks
    )
    return (
        '<p class="foot"><span class="open-dot"></span> before '
        '<span class="full-dot"></span> after '
        f"training; bars are 95 % intervals{_sample_sizes(runs)}.</p>"
        f'<ul class="forest">{"".join(rows)}<li class="axis"><span class="who">Accuracy</span>'
        f'<span class="tracks">{axis}</span></li></ul>'
    )


def accuracy_of(run: Run, when: str) -> tuple[float | None, tuple[float, float] | None]:
    """Return accuracy `before` or `after` training and its interval; None for what is no share."""
    value = as_number(lookup(run.summary, when, "accuracy"))
    if value is None or not 0 <= value <= 1:
        return None, None
    bounds = interval(lookup(run.summary, when, "accuracy_ci"))
    return value, bounds if bounds and bounds[0] >= 0 and bounds[1] <= 1 else None


def _track(run: Run, when: str, end: float) -> str:
    value, bounds = accuracy_of(run, when)
    if value is None:
        return f'<span class="track {when}"><em>no evaluation {when} training</em></span>'
    told = f"{when}: {100 * value:.1f} %"
    bar = ""
    if bounds:
        told += f", 95 % interval {100 * bounds[0]:.1f} to {100 * bounds[1]:.1f} %"
        left, width = 100 * bounds[0] / end, 100 * (bounds[1] - bounds[0]) / end
        bar = f'<span class="ci" style="left:{left:.2f}%;width:{width:.2f}%"></span>'
    return (
        f'<span class="track {when}" title="{escape(told)}" role="img" '
        f'aria-label="{escape(told)}">{bar}'
        f'<span class="dot" style="left:{100 * value / end:.2f}%"></span></span>'
    )


def _sample_sizes(runs: Sequence[Run]) -> str:
    sizes = set()
    for run in runs:
        for when in ("before", "after"):
            n, k = (as_number(lookup(run.summary, when, key)) for key in ("n", "k"))
            if n is not None and k is not None and abs(n) + abs(k) < 1e12:
                sizes.add(f"{count(int(n), 'prompt')}, {count(int(k), 'answer')} each")
    return f" over {sizes.pop()}" if len(sizes) == 1 else ""


def mean_seconds(run: Run) -> dict[str, float]:
    """Return mean seconds per step for each phase that the run timed."""
    means = {}
    for key, _ in PHASES:
        values = [
            value
            for step in run.steps
            if (value := step["seconds"].get(key)) is not None and 0 <= value < 1e12
        ]
        if values:
            means[key] = sum(values) / len(values)
    return means


def time_per_step(runs: Sequence[Run]) -> str:
    """Return where a step's seconds go, one stacked bar per condition."""
    means = [mean_seconds(run) for run in runs]
    longest = max((sum(mean.values()) for mean in means), default=0.0)
    if not longest:
        return '<p class="empty">No step times were recorded.</p>'
    seen = {key for mean in means for key, value in mean.items() if value}
    keys = "".join(
        f'<li><i class="phase p{at}"></i>{name}</li>'
        for at, (key, name) in enumerate(PHASES)
        if key in seen
    )
    rows = []
    for index, mean in enumerate(means):
        total = sum(mean.values())
        bars = "".join(
            f'<span class="phase p{at}" style="width:{100 * mean[key] / longest:.2f}%" '
            f'title="{name}: {number(mean[key])} s"></span>'
            for at, (key, name) in enumerate(PHASES)
            if mean.get(key)
        )
        shown = f"{number(total)} s" if mean else DASH
        rows.append(
            f'<li><span class="who">{named(index, runs)}</span><span class="stack">{bars}</span>'
            f'<span class="total">{shown}</span></li>'
        )
    return f'<ul class="phases">{keys}</ul><ul class="times">{"".join(rows)}</ul>'
