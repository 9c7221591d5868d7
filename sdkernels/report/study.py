"""`build`: gather the runs of a folder into one study; write its page, plots and summary."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdkernels.report.fields import as_number, lookup, model_name
from sdkernels.report.load import Problems, Run, has_lines, is_run, load_run, read_object
from sdkernels.report.teacher import load as load_teacher
from sdkernels.report.text import count, one_line
from sdkernels.train.strict_json import strict

PLOTS = "plots"
SMALL_MODEL_PARAMETERS = 1_000_000_000
FEW_STEPS = 50
_NOTE_BY = "sdkernels.report"
_SIZE = re.compile(r"(?<![A-Za-z0-9.])(\d+(?:\.\d+)?)([MmBb])(?![A-Za-z0-9])")


@dataclass
class Study:
    """Everything a report shows: the runs in order, what could not be read, what it all proves.

    `existing` is the `summary.json` that a study folder had before; `single` tells a lone run;
    `teacher` is what the teacher scored under each context, where that was measured.
    """

    folder: Path
    runs: list[Run]
    problems: Problems
    note: str
    existing: dict[str, Any]
    single: bool
    teacher: dict[str, Any] | None = None


def build(folder: str | Path, *, order: Sequence[str] | None = None) -> Path:
    """Write `report.html` and `plots/*.png` for a run or a study, and `summary.json` for a study.

    Args:
        folder: a run folder, or a folder whose subfolders are run folders.
        order: condition names in the order to show them; those it does not name come last.
            Default: the order of an earlier `summary.json`, otherwise by folder name.

    Returns:
        The path of `report.html`. The same input gives the same bytes.

    Raises:
        ValueError: `folder` is no folder, or holds no run. A damaged run does not raise: what could
            not be read is listed in the report and under `problems` in the study's `summary.json`.
        ImportError: matplotlib is not installed.
        OSError: the report could not be written.
    """
    from sdkernels.report.page import render
    from sdkernels.report.plots import draw

    study = load_study(Path(folder), order=order)
    target = study.folder / "report.html"
    _write(target, render(study))
    if not study.single:
        summary = json.dumps(_summary(study), indent=2, allow_nan=False)
        _write(study.folder / "summary.json", summary + "\n")
    draw(study.runs, study.folder / PLOTS)
    return target


def load_study(folder: Path, *, order: Sequence[str] | None = None) -> Study:
    """Return the runs under `folder` with all that could not be read; see `build`."""
    if not folder.is_dir():
        raise ValueError(f"folder={str(folder)!r} is not a folder; give a run or a study folder")
    problems = Problems()
    existing: dict[str, Any] = {}
    inner = [child for child in _subfolders(folder) if is_run(child)]
    # A run's own summary and a damaged study summary look alike; runs further down decide.
    single = has_lines(folder) or (is_run(folder) and not inner)
    if single:
        runs = [load_run(folder, "", problems)]
        for child in inner:
            problems.add(f"{child.name}/", "is a run of its own; it has its own report")
    else:
        runs = [load_run(child, f"{child.name}/", problems) for child in inner]
        for child in _subfolders(folder):
            if child not in inner:
                problems.add(f"{child.name}/", "holds no file of a run; left out")
        existing = _existing_summary(folder / "summary.json", problems)
        runs = _ordered(runs, order if order is not None else _earlier_order(existing))
    if not runs:
        raise ValueError(
            f"folder={str(folder)!r} holds no run: neither it nor a folder in it has a "
            "metrics.jsonl, tokens.jsonl or summary.json; make one with `sdkernels train` or "
            "`sdkernels demo`"
        )
    _label(runs)
    note = existing.get("note") if existing.get("note_by") != _NOTE_BY else None
    shown = note if isinstance(note, str) else plain_note(runs)
    return Study(folder, runs, problems, shown, existing, single, load_teacher(folder, problems))


def _subfolders(folder: Path) -> list[Path]:
    return sorted(
        child
        for child in folder.iterdir()
        if child.is_dir() and child.name != PLOTS and not child.name.startswith(".")
    )


def _existing_summary(path: Path, problems: Problems) -> dict[str, Any]:
    if not path.exists():
        return {}
    loaded = read_object(path)
    if isinstance(loaded, str):
        problems.add("summary.json", f"{loaded}; written anew")
        return {}
    return loaded


def _earlier_order(existing: dict[str, Any]) -> list[str]:
    entries = existing.get("conditions")
    names = [lookup(entry, "condition") for entry in entries] if isinstance(entries, list) else []
    return [name for name in names if isinstance(name, str)]


def _ordered(runs: list[Run], order: Sequence[str]) -> list[Run]:
    rank: dict[str, int] = {}
    for name in order:
        rank.setdefault(name, len(rank))
    return sorted(runs, key=lambda run: (rank.get(run.condition, len(rank)), run.path.name))


def _label(runs: list[Run]) -> None:
    """Give every run a name to show; runs with the same title are told apart by their folder."""
    titles = [one_line(str(run.summary["title"]), 48) for run in runs]
    for run, title in zip(runs, titles, strict=True):
        run.label = (
            title if titles.count(title) == 1 else f"{title} ({one_line(run.path.name, 24)})"
        )


def model_parameters(summary: dict[str, Any]) -> float | None:
    """Return the number of parameters as recorded or as the model's name says it (`135M`)."""
    recorded = as_number(summary.get("num_parameters"))
    if recorded is not None and 0 < recorded < math.inf:
        return recorded
    found = _SIZE.findall(model_name(summary) or "")
    return float(found[-1][0]) * (1e6 if found[-1][1] in "Mm" else 1e9) if found else None


def plain_note(runs: Sequence[Run]) -> str:
    """Return what the runs can and cannot show; empty for long runs of large models."""
    steps = max(run.summary["steps"] for run in runs)
    sizes = [size for run in runs if (size := model_parameters(run.summary)) is not None]
    size = max(sizes, default=None)
    few, small = steps < FEW_STEPS, size is not None and size < SMALL_MODEL_PARAMETERS
    if not few and not small:
        return ""
    model = f"a {_size_word(size)} model" if size is not None else "this model"
    if steps == 0:
        return "No finished training step was recorded, so nothing here is about training."
    told = "A few steps" if 1 < steps <= 10 else count(steps, "step")
    verb = "shows" if steps == 1 else "show"
    return (
        f"{told} on {model} {verb} the mechanics, not the science: that every part runs, and what "
        "each condition feeds into training. Which condition is better takes larger models, "
        "hundreds of steps and several seeds to say."
    )


def _size_word(size: float) -> str:
    return f"{size / 1e9:.3g}B" if size >= 1e9 else f"{size / 1e6:.3g}M"


def _summary(study: Study) -> dict[str, Any]:
    """Return the study's machine-readable summary, as strict JSON."""
    derived = study.existing.get("note_by") == _NOTE_BY or "note" not in study.existing
    result = {**study.existing, "note": study.note}
    if derived:
        result["note_by"] = _NOTE_BY
    result["conditions"] = [run.summary for run in study.runs]
    result["problems"] = list(study.problems)
    found: dict[str, Any] = strict(result)
    return found


def _write(path: Path, content: str) -> None:
    """Write `content` so that a reader never sees half a file."""
    partial = path.with_name(f".{path.name}.partial")
    partial.write_text(content, encoding="utf-8", newline="\n")
    partial.replace(path)
