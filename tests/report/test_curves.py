import re
from pathlib import Path
from xml.etree import ElementTree

from sdkernels.report import curves
from sdkernels.report.load import Run


def run_with(label: str, losses: list[float]) -> Run:
    steps = [{"step": at, "loss": loss} for at, loss in enumerate(losses, 1)]
    return Run(Path(), "", {"condition": label}, steps, label=label)


def svgs(body: str) -> list[ElementTree.Element]:
    return [ElementTree.fromstring(svg) for svg in re.findall(r"<svg viewBox.*?</svg>", body)]


def test_every_point_has_a_marker_that_tells_its_value() -> None:
    body = curves.section([run_with("a", [0.5, -0.25]), run_with("b", [1.0, 2.0])])
    (svg,) = svgs(body)
    told = [title.text for title in svg.iter("title")]
    assert told == [
        "a", "a, step 1: 0.500", "a, step 2: −0.250", "b", "b, step 1: 1.00", "b, step 2: 2.00"
    ]  # fmt: skip


def test_points_stay_inside_the_drawing_and_higher_values_are_higher() -> None:
    (svg,) = svgs(curves.section([run_with("a", [3.0, 1.0, 2.0])]))
    path = next(node.get("d", "") for node in svg.iter("path") if node.get("class") == "line")
    places = [tuple(map(float, pair.split())) for pair in path[1:].split("L")]
    assert all(0 < x < 340 and 0 < y < 206 for x, y in places)
    assert places[0][1] < places[2][1] < places[1][1]
    assert places[0][0] < places[1][0] < places[2][0]


def test_labels_and_units_are_on_the_axes() -> None:
    (svg,) = svgs(curves.section([run_with("a", [1.0, 2.0])]))
    texts = [node.text for node in svg.iter("text")]
    assert "value" in texts
    assert "step 1" in texts
    assert "2" in texts


def test_one_step_is_a_point_and_said_to_be_one() -> None:
    body = curves.section([run_with("a", [1.0])])
    assert "Only one step was recorded" in body
    assert "step 1: 1.00" in body


def test_one_legend_names_every_condition() -> None:
    body = curves.section([run_with(f"name-{at}", [1.0]) for at in range(6)])
    assert body.count('class="legend"') == 1
    assert body.count('class="key"') == 6


def test_hundreds_of_conditions_are_grey_lines_with_their_names() -> None:
    body = curves.section([run_with(f"name-{at}", [1.0, float(at)]) for at in range(300)])
    assert "too many to tell apart" in body
    assert 'class="key"' not in body
    assert "<title>name-299</title>" in body


def test_no_steps() -> None:
    assert "No step was recorded" in curves.section([run_with("a", [])])
