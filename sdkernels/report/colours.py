"""The style rules that are computed: line colours, dashes, the heat-map's ramps and its switch."""

from __future__ import annotations

from collections.abc import Sequence

from sdkernels.report.heatmap import LEVELS, VIEWS, View
from sdkernels.report.series import DARK_COLOURS, DASHES, LIGHT_COLOURS

# From paper to red, blue and ochre; the text on the strongest step keeps a contrast of 4.5 to 1.
LIGHT_RAMP = {
    "paper": "#ffffff",
    "positive": "#dd6d55",
    "negative": "#5a9fd4",
    "amount": "#c9a227",
}
DARK_RAMP = {
    "paper": "#1b1d20",
    "positive": "#a53f2e",
    "negative": "#266b9f",
    "amount": "#7a5e0e",
}


def rules() -> str:
    """Return the rules as CSS text, for light and dark."""
    light = _variables(LIGHT_COLOURS, LIGHT_RAMP)
    dark = _variables(DARK_COLOURS, DARK_RAMP)
    found = [f":root{{{light}}}", f"@media (prefers-color-scheme:dark){{:root{{{dark}}}}}"]
    found += [f".c{index}{{--line:var(--c{index})}}" for index in range(len(LIGHT_COLOURS))]
    for index, dash in enumerate(DASHES):
        if dash:
            shown = " ".join(map(str, dash))
            found.append(f".dash{index} .line{{stroke-dasharray:{shown}}}")
    for view in VIEWS:
        found += _switch(view)
    for verdict in ("all", "correct", "wrong"):
        button = f"#only-{verdict}"
        found += _pressed(button, f".bar label[for=only-{verdict}]")
        if verdict != "all":
            found.append(f"{button}:checked~* .rollout:not(.is-{verdict}){{display:none}}")
    return "\n".join(found)


def _switch(view: View) -> list[str]:
    """Return what the view's radio button turns on: its colours, its legend, its remarks."""
    button = f"#view-{view.prefix}"
    label = f".bar label[for=view-{view.prefix}]"
    found = [
        f"{button}:checked~.bar .for-{view.prefix}{{display:flex}}",
        f"{button}:checked~* .absent.for-{view.prefix}{{display:block}}",
        *_pressed(button, label),
    ]
    for level in range(1, LEVELS + 1):
        ramps = {level: "positive", -level: "negative"} if view.diverging else {level: "amount"}
        for at, ramp in ramps.items():
            cell = f".{view.prefix}{at}"
            paint = f"{{background:var(--{ramp}-{level})}}"
            found.append(f"{button}:checked~* .tokens {cell},.ramp {cell}{paint}")
    return found


def _pressed(button: str, label: str) -> list[str]:
    """Return how a radio button's label looks when it is chosen, and when it has the focus."""
    return [
        f"{button}:checked~{label}{{background:var(--ink);color:var(--surface)}}",
        f"{button}:focus-visible~{label}{{outline:2px solid var(--accent);outline-offset:2px}}",
    ]


def _variables(lines: Sequence[str], ramp: dict[str, str]) -> str:
    named = [f"--c{index}:{colour}" for index, colour in enumerate(lines)]
    for name in ("positive", "negative", "amount"):
        for level in range(1, LEVELS + 1):
            named.append(f"--{name}-{level}:{mix(ramp['paper'], ramp[name], level / LEVELS)}")
    return ";".join(named)


def mix(start: str, end: str, share: float) -> str:
    """Return the colour `share` of the way from `start` to `end`, both as `#rrggbb`."""
    channels = [(int(start[at : at + 2], 16), int(end[at : at + 2], 16)) for at in (1, 3, 5)]
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in channels)
