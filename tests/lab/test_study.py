import dataclasses
import json
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sdkernels.lab import study
from sdkernels.lab.cell import cell_file
from sdkernels.lab.pool import Stop
from sdkernels.lab.scales import Scale
from sdkernels.lab.study import get_scale, run_cells
from sdkernels.train.errors import Interrupted

QUIET: dict[str, Any] = {"announce": lambda line: None, "device": "cpu", "workers": 1}


@pytest.fixture
def small(toy: Scale) -> Scale:
    """Two cells a seed."""
    return dataclasses.replace(toy, coverages=(2,), routed=(), one_family=())


@pytest.fixture
def prepared(toy_run: Path, tmp_path: Path) -> Callable[[str], Path]:
    """A folder that has the base model, and no cell."""

    def folder(name: str) -> Path:
        shutil.copytree(toy_run / "base", tmp_path / name / "base")
        shutil.copy(toy_run / "base.json", tmp_path / name)
        return tmp_path / name

    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("cells/*.json"))}


def test_a_run_that_is_stopped_goes_on_to_the_same_numbers(
    small: Scale,
    toy_run: Path,
    prepared: Callable[[str], Path],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cells = small.cells(1)
    real = study.run_all

    def stopped(*args: Any, **settings: Any) -> Any:
        yield next(real(*args, **settings))
        signal.raise_signal(signal.SIGTERM)

    halted = prepared("halted")
    monkeypatch.setattr(study, "run_all", stopped)
    with pytest.raises(Interrupted, match="stopped with 1 of 2 cells done") as caught:
        run_cells(small, halted, **QUIET)
    assert caught.value.signal_number == signal.SIGTERM
    monkeypatch.setattr(study, "run_all", real)
    base = (halted / "base" / "model.safetensors").read_bytes()
    before = contents(halted)
    assert len(before) == 1
    lines: list[str] = []
    assert run_cells(small, halted, resume=True, **QUIET | {"announce": lines.append}) == cells
    assert "1 of 2 cells are done" in lines
    assert contents(halted).items() >= before.items()
    assert (halted / "base" / "model.safetensors").read_bytes() == base
    for cell in cells:
        ours, theirs = (cell_file(folder, cell).read_bytes() for folder in (halted, toy_run))
        assert without_seconds(ours) == without_seconds(theirs)


def without_seconds(content: bytes) -> list[bytes]:
    return [line for line in content.splitlines() if b'"seconds"' not in line]


def test_more_seeds_keep_the_cells_that_are_done(
    small: Scale, toy_run: Path, prepared: Callable[[str], Path]
) -> None:
    folder = prepared("more")
    (folder / "cells").mkdir()
    for cell in small.cells(1):
        shutil.copy(cell_file(toy_run, cell), folder / "cells")
    before = contents(folder)
    cells = run_cells(small, folder, seeds=2, resume=True, **QUIET)
    assert len(cells) == len(contents(folder)) == 4
    assert contents(folder).items() > before.items()


def test_a_folder_is_not_taken_over_silently(toy: Scale, toy_run: Path) -> None:
    with pytest.raises(ValueError, match="has 6 cells of an earlier run; add --resume"):
        run_cells(toy, toy_run, **QUIET)
    other = dataclasses.replace(toy, eval_samples=3)
    with pytest.raises(ValueError, match=r"other settings \(eval_samples\)"):
        run_cells(other, toy_run, resume=True, **QUIET)


def test_a_base_model_that_was_cut_short_is_trained_again(
    small: Scale, toy_run: Path, tmp_path: Path
) -> None:
    (tmp_path / "base.partial").mkdir()
    (tmp_path / "base.partial" / "config.json").write_text("{")
    shutil.copy(toy_run / "base.json", tmp_path)
    run_cells(dataclasses.replace(small, swept=()), tmp_path, **QUIET)
    assert not (tmp_path / "base.partial").exists()
    ours, theirs = (folder / "base" / "model.safetensors" for folder in (tmp_path, toy_run))
    assert ours.read_bytes() == theirs.read_bytes()
    assert len(json.loads((tmp_path / "base" / "losses.json").read_text())) == small.base.steps


def test_workers_write_what_one_process_writes(
    small: Scale, toy_run: Path, prepared: Callable[[str], Path]
) -> None:
    folder = prepared("together")
    for cell in run_cells(small, folder, **QUIET | {"workers": 2}):
        ours, theirs = (cell_file(place, cell).read_bytes() for place in (folder, toy_run))
        assert without_seconds(ours) == without_seconds(theirs)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"seeds": 0}, "seeds=0: expected at least 1"),
        ({"workers": 0}, "workers=0: expected at least 1"),
        ({"device": "gpu"}, "device='gpu': expected auto, cpu or cuda"),
    ],
)
def test_bad_settings_touch_no_file(
    small: Scale, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        run_cells(small, tmp_path / "new", **QUIET | settings)
    assert not (tmp_path / "new").exists()


def test_ctrl_c_says_how_to_go_on(
    small: Scale, prepared: Callable[[str], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise Stop(signal.SIGINT)
        yield

    monkeypatch.setattr(study, "run_all", fail)
    with pytest.raises(Interrupted, match="stopped with 0 of 2 cells done; the same command"):
        run_cells(small, prepared("stopped"), **QUIET)


def test_scales_are_found_by_name() -> None:
    assert get_scale("smoke").name == "smoke"
    with pytest.raises(ValueError, match=r"scale='smok': .*did you mean 'smoke'"):
        get_scale("smok")
