import json
from pathlib import Path

import pytest

from sdkernels.lab.results import NOTE, write_results
from sdkernels.lab.scales import Scale


def test_a_run_leaves_numbers_tables_and_plots(toy_run: Path) -> None:
    summary = json.loads((toy_run / "summary.json").read_text(encoding="utf-8"))
    assert len(summary["groups"]) == 6
    assert summary["note"] == NOTE
    assert {one["outcome"] for one in summary["expectations"]} <= {"holds", "fails", "open"}
    page = (toy_run / "results.md").read_text(encoding="utf-8")
    assert page.startswith("# sdkernels lab, scale toy")
    for path in (toy_run / "plots").iterdir():
        assert f"(plots/{path.name})" in page
    printed = (toy_run / "printed.txt").read_text(encoding="utf-8")
    assert "Expectations" in printed
    assert printed.isascii(), "a pipe may know ASCII alone"


def test_an_empty_run_is_an_error(toy: Scale, toy_run: Path, tmp_path: Path) -> None:
    (tmp_path / "base.json").write_bytes((toy_run / "base.json").read_bytes())
    with pytest.raises(ValueError, match="no cell is done yet"):
        write_results(toy, tmp_path, toy.cells(1))
