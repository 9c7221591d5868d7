import struct
from pathlib import Path

import pytest
from report.make_fixture import CONDITIONS, make_run, make_study

from sdkernels.report.load import Problems, Run, load_run
from sdkernels.report.plots import draw


def load(*folders: Path) -> list[Run]:
    runs = [load_run(folder, "", Problems()) for folder in folders]
    for run in runs:
        run.label = run.summary["title"]
    return runs


def size(path: Path) -> tuple[int, int]:
    header = path.read_bytes()[:24]
    assert header.startswith(b"\x89PNG")
    return struct.unpack(">II", header[16:24])


def test_a_study_gets_its_plots_and_the_same_bytes_twice(tmp_path: Path) -> None:
    study = make_study(tmp_path / "study")
    runs = load(*(study / row[0] for row in CONDITIONS))
    first = draw(runs, tmp_path / "a")
    second = draw(runs, tmp_path / "b")
    assert [path.name for path in first] == [
        "learning_curves.png",
        "more_curves.png",
        "entropy_deciles.png",
        "accuracy.png",
        "time_per_step.png",
    ]
    assert min(size(first[0])) > 600
    assert [path.read_bytes() for path in first] == [path.read_bytes() for path in second]


def test_plots_without_numbers_are_not_drawn_and_old_ones_removed(tmp_path: Path) -> None:
    draw(load(make_run(tmp_path / "run")), tmp_path / "plots")
    (tmp_path / "empty").mkdir()
    assert draw(load(tmp_path / "empty"), tmp_path / "plots") == []
    assert list((tmp_path / "plots").iterdir()) == []


def test_three_hundred_conditions_are_one_curve_each_and_the_first_sixty_rows(
    tmp_path: Path,
) -> None:
    def run(at: int) -> Run:
        steps = [{"step": 1, "loss": at / 300, "seconds": {"loss": 1.0}}]
        summary = {"after": {"accuracy": at / 300, "accuracy_ci": [0.0, 1.0]}}
        return Run(Path(), "", summary, steps, label=f"c{at}")

    drawn = draw([run(at) for at in range(300)], tmp_path)
    heights = {path.name: size(path)[1] for path in drawn}
    # One panel without a legend, which 300 names would make several times as high.
    assert heights["learning_curves.png"] == pytest.approx(160 * 2.7, abs=1)
    # Rows of half an inch or less at 160 dots: 300 of them would be four times as high.
    assert 160 * 60 * 0.36 < heights["time_per_step.png"] < heights["accuracy.png"] < 160 * 60 / 2
    assert len(heights) == 3


def test_hostile_titles_are_drawn_as_text(tmp_path: Path, recwarn) -> None:
    runs = load(make_run(tmp_path / "a"), make_run(tmp_path / "b"))
    runs[0].label, runs[1].label = "$\\frac{1}$ 東京 \x00", "_hidden"
    assert len(draw(runs, tmp_path / "plots")) == 5
    assert [str(warning.message) for warning in recwarn] == []


def test_importing_reports_does_not_import_matplotlib() -> None:
    import subprocess
    import sys

    code = "import sys, sdkernels.report; sys.exit('matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
