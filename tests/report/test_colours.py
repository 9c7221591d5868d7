import itertools

import pytest

from sdkernels.report import colours
from sdkernels.report.heatmap import LEVELS
from sdkernels.report.series import DARK_COLOURS, LIGHT_COLOURS

LIGHT, DARK = ("#ffffff", "#1d1f23", LIGHT_COLOURS), ("#1b1d20", "#ece9e4", DARK_COLOURS)
# Machado, Oliveira and Fernandes 2009, severity 1, on linear RGB.
VISION = {
    "full": ((1, 0, 0), (0, 1, 0), (0, 0, 1)),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}


def linear(colour: str) -> list[float]:
    shares = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    return [s / 12.92 if s <= 0.04045 else ((s + 0.055) / 1.055) ** 2.4 for s in shares]


def times(matrix: tuple, vector: list[float]) -> list[float]:
    return [sum(a * b for a, b in zip(row, vector, strict=True)) for row in matrix]


def oklab(rgb: list[float]) -> list[float]:
    lms = times(
        (
            (0.4122214708, 0.5363325363, 0.0514459929),
            (0.2119034982, 0.6806995451, 0.1073969566),
            (0.0883024619, 0.2817188376, 0.6299787005),
        ),
        [min(1.0, max(0.0, channel)) for channel in rgb],
    )
    return times(
        (
            (0.2104542553, 0.7936177850, -0.0040720468),
            (1.9779984951, -2.4285922050, 0.4505937099),
            (0.0259040371, 0.7827717662, -0.8086757660),
        ),
        [value ** (1 / 3) for value in lms],
    )


def contrast(first: str, second: str) -> float:
    light = sorted(
        sum(a * b for a, b in zip((0.2126, 0.7152, 0.0722), linear(c), strict=True))
        for c in (first, second)
    )
    return (light[1] + 0.05) / (light[0] + 0.05)


@pytest.mark.parametrize(("paper", "ink", "lines"), [LIGHT, DARK], ids=["light", "dark"])
@pytest.mark.parametrize("vision", VISION)
def test_lines_stay_apart_for_colour_blind_readers(paper, ink, lines, vision) -> None:
    seen = [oklab(times(VISION[vision], linear(colour))) for colour in lines]
    closest = min(
        sum((a - b) ** 2 for a, b in zip(first, second, strict=True)) ** 0.5
        for first, second in itertools.combinations(seen, 2)
    )
    assert closest > 0.08


@pytest.mark.parametrize(("paper", "ink", "lines"), [LIGHT, DARK], ids=["light", "dark"])
def test_lines_stand_out_from_the_paper(paper, ink, lines) -> None:
    assert min(contrast(colour, paper) for colour in lines) > 3


@pytest.mark.parametrize(
    ("ramp", "ink"),
    [(colours.LIGHT_RAMP, LIGHT[1]), (colours.DARK_RAMP, DARK[1])],
    ids=["light", "dark"],
)
def test_text_is_readable_on_every_step_of_the_ramps(ramp, ink) -> None:
    for name in ("positive", "negative", "amount"):
        for level in range(LEVELS + 1):
            tint = colours.mix(ramp["paper"], ramp[name], level / LEVELS)
            assert contrast(tint, ink) > 4.5, (name, level)


def test_every_view_has_its_switch_and_colours() -> None:
    rules = colours.rules()
    for prefix in "gstd":
        assert f"#view-{prefix}:checked~.bar .for-{prefix}" in rules
        assert f".{prefix}8,.ramp .{prefix}8" in rules
    assert ".g-8" in rules
    assert ".s-8" not in rules
