import json
from pathlib import Path

import matplotlib.image
import pytest

from sdkernels.lab import plots
from sdkernels.lab.plots import draw


def test_figures_are_drawn_the_same_twice(toy_run: Path, tmp_path: Path) -> None:
    summary = json.loads((toy_run / "summary.json").read_text(encoding="utf-8"))
    first, again = draw(summary, tmp_path / "a"), draw(summary, tmp_path / "b")
    assert [path.name for path in first] == ["context_by_coverage.png", "routing.png"]
    for ours, theirs in zip(first, again, strict=True):
        assert ours.read_bytes() == theirs.read_bytes()
        assert matplotlib.image.imread(ours).std() > 0.01


def test_what_was_not_run_is_not_drawn(toy_run: Path, tmp_path: Path) -> None:
    summary = json.loads((toy_run / "summary.json").read_text(encoding="utf-8"))
    swept = [one for one in summary["groups"] if one["condition"] != "dasd"]
    assert [path.name for path in draw({"groups": swept}, tmp_path)] == ["context_by_coverage.png"]
    assert draw({"groups": []}, tmp_path) == []


def test_bars_are_never_negative() -> None:
    assert plots._bars([[0.5, 0.6, 0.4], [0.0, -1.0, 2.0]]) == [[0.0, 1.0], [0.0, 2.0]]


def test_a_group_is_drawn_where_its_numbers_are(
    toy_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    summary = json.loads((toy_run / "summary.json").read_text(encoding="utf-8"))
    seen = {}
    monkeypatch.setattr(
        "matplotlib.figure.Figure.savefig",
        lambda figure, path, **settings: seen.update({Path(path).name: figure}),
    )
    for one in summary["groups"]:
        one["sets"]["other"]["accuracy"]["change"] = [0.1 * one["coverage"], 0.0, 0.5]
    draw(summary, tmp_path)
    axes = seen["context_by_coverage.png"].axes[3]
    assert axes.get_title(loc="left") == "other families"
    heights = [list(line.get_ydata()) for line in axes.get_lines()[:1]]
    assert heights == [pytest.approx([10.0, 20.0])]
