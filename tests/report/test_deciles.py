import json
from pathlib import Path

import pytest
from report.make_fixture import CONDITIONS, make_run

from sdkernels.report import deciles
from sdkernels.report.load import Problems, Run, load_run

NAMES = ("entropy_by_entropy_decile", "gap_by_entropy_decile", "direction_by_entropy_decile")


def run_with(folder: Path, *values: object, key: str = NAMES[1]) -> Run:
    folder.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"step": at, key: value}) for at, value in enumerate(values, 1)]
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    run = load_run(folder, "", Problems())
    run.label = folder.name
    return run


def test_points_are_means_over_the_steps_that_have_one(tmp_path: Path) -> None:
    run = run_with(tmp_path, [1.0, None] + [0.0] * 8, [3.0, None] + [0.5] * 8, None)
    (panel,) = deciles.decile_panels([run])
    assert panel.metric.key == "gap_by_entropy_decile"
    (line,) = panel.lines
    assert line.points == [(1.0, 2.0)] + [(float(at), 0.25) for at in range(3, 11)]


@pytest.mark.parametrize("value", [None, [1.0] * 9, "x", {"0": 1.0}, [None] * 10, ["a"] * 10])
def test_what_is_no_list_of_ten_numbers_is_not_drawn(tmp_path: Path, value: object) -> None:
    assert deciles.decile_panels([run_with(tmp_path, value)]) == []
    assert "No run recorded" in deciles.section([run_with(tmp_path, value)])


def test_infinite_values_leave_a_gap_in_the_line(tmp_path: Path) -> None:
    run = run_with(tmp_path, [float("inf")] + [1.0] * 9)
    (panel,) = deciles.decile_panels([run])
    assert [x for x, _ in panel.lines[0].points] == list(range(2, 11))


def test_zero_is_on_the_axis_of_gap_and_direction(tmp_path: Path) -> None:
    for key in NAMES[1:]:
        (panel,) = deciles.decile_panels([run_with(tmp_path / key, [2.0] * 10, key=key)])
        assert panel.low <= 0 <= panel.high


def test_the_page_names_those_without_a_teacher(tmp_path: Path) -> None:
    runs = [load_run(make_run(tmp_path / row[0], row), "", Problems()) for row in CONDITIONS[:2]]
    for run in runs:
        run.label = run.condition
    body = deciles.section(runs)
    assert "Without a teacher, and so without a gap: grpo." in body
    assert body.count("<figure") == 2  # nobody has a gate
    assert 'aria-label="Gap by tenth for 1 condition"' in body
