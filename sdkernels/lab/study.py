"""The lab's run: base model, then cells; resumable after every cell."""

from __future__ import annotations

import difflib
import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sdkernels.lab.base_facts import base_facts, evaluate_sets
from sdkernels.lab.cell import cell_file, evaluation_sets
from sdkernels.lab.conditions import Cell
from sdkernels.lab.model import load, save
from sdkernels.lab.pool import Stop, StopOnSignal, run_all
from sdkernels.lab.pretrain import train_base
from sdkernels.lab.scales import ONE_FAMILY, SCALES, SEVERAL_FAMILIES, Scale
from sdkernels.train.errors import Interrupted
from sdkernels.train.records import write_json

# Fixed, because the number of threads decides how sums are split, and with that the last bits.
BASE_THREADS = 2

Announce = Callable[[str], None]


def get_scale(name: str) -> Scale:
    """The scale of this name.

    Raises:
        ValueError: an unknown name, with the nearest one.
    """
    if name not in SCALES:
        near = difflib.get_close_matches(name, SCALES, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"scale={name!r}: expected one of {', '.join(SCALES)}{hint}")
    return SCALES[name]


def run_cells(
    scale: Scale,
    output: Path,
    *,
    seeds: int | None = None,
    resume: bool = False,
    workers: int | None = None,
    device: str = "auto",
    announce: Announce = print,
) -> list[Cell]:
    """Run what is not in `output` yet, and return all cells of this run.

    Args:
        scale: how much to run.
        output: folder for the base model (made once), one file a cell, and their settings.
        seeds: repetitions of each cell; default: the scale's.
        resume: go on with a folder that has cells; more seeds may be asked for than before.
        workers: processes, of one thread each. Default: one per core on the CPU, one on a GPU.
        device: "cpu", "cuda" or "auto".
        announce: called with lines about progress.

    Raises:
        ValueError: numbers below 1, or a folder with cells of other settings, or of these without
            `resume`.
        Interrupted: after SIGINT or SIGTERM; the message says how to go on.
    """
    device = _device(device)
    seeds = scale.default_seeds if seeds is None else seeds
    if workers is None:
        workers = 1 if device != "cpu" else os.cpu_count() or 1
    for name, value in (("seeds", seeds), ("workers", workers)):
        if value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")
    cells = scale.cells(seeds)
    _check_folder(scale, output, resume)
    try:
        with StopOnSignal():
            _prepare_base(scale, output, device, announce)
            _run_missing(scale, cells, output, workers, device, announce)
    except Stop as stop:
        done = sum(cell_file(output, cell).exists() for cell in cells)
        raise Interrupted(
            f"stopped with {done} of {len(cells)} cells done; the same command with --resume goes "
            "on",
            stop.signal_number,
        ) from None
    return cells


def _run_missing(
    scale: Scale, cells: list[Cell], output: Path, workers: int, device: str, announce: Announce
) -> None:
    todo = [cell for cell in cells if not cell_file(output, cell).exists()]
    announce(f"{len(cells) - len(todo)} of {len(cells)} cells are done")
    started = time.perf_counter()
    finished = run_all(scale, todo, output, workers=workers, device=device)
    for number, (cell, seconds) in enumerate(finished, 1):
        minutes = (time.perf_counter() - started) / 60 / number * (len(todo) - number)
        announce(f"[{number}/{len(todo)}] {cell.name}: {seconds:.0f} s; {minutes:.0f} min left")


def _device(device: str) -> str:
    if device not in ("auto", "cpu", "cuda"):
        raise ValueError(f"device={device!r}: expected auto, cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device='cuda': this machine has no CUDA device; use cpu or auto")
    if device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return device


def _check_folder(scale: Scale, output: Path, resume: bool) -> None:
    """Refuse a folder of other settings; note this run's in a new one."""
    path = output / "lab.json"
    # Through JSON, so that tuples compare equal to the lists of the file.
    ours = json.loads(json.dumps(asdict(scale)))
    if path.exists():
        found = json.loads(path.read_text(encoding="utf-8"))
        keys = sorted(ours.keys() | found.keys())
        differing = [key for key in keys if ours.get(key) != found.get(key)]
        if differing:
            raise ValueError(
                f"output={output}: this folder holds a run with other settings "
                f"({', '.join(differing)}); choose another folder"
            )
    num_cells = len(list((output / "cells").glob("*.json")))
    if num_cells and not resume:
        raise ValueError(
            f"output={output}: this folder has {num_cells} cells of an earlier run; add --resume "
            "to go on with them, or choose another folder"
        )
    write_json(path, ours)


def _prepare_base(scale: Scale, output: Path, device: str, announce: Announce) -> None:
    """Train and measure the base model, unless the folder has it."""
    folder = output / "base"
    if not folder.exists():
        announce(f"training the base model: {scale.base.steps:,} steps")
        _train_base(scale, folder, device, announce)
    if not (output / "base.json").exists():
        announce("measuring the base model")
        write_json(output / "base.json", _measure_base(scale, load(folder, device)))


def _train_base(scale: Scale, folder: Path, device: str, announce: Announce) -> None:
    torch.set_num_threads(BASE_THREADS)
    started = time.perf_counter()
    losses: list[float] = []

    def progress(step: int, loss: float) -> None:
        losses.append(loss)
        if step % max(1, scale.base.steps // 10) == 0:
            seconds = time.perf_counter() - started
            announce(f"  step {step:,}: {loss:.3f} nats a token, {seconds:.0f} s")

    model = train_base(scale.base, device=device, progress=progress)
    partial = folder.with_name("base.partial")
    shutil.rmtree(partial, ignore_errors=True)
    save(model, partial)
    write_json(partial / "losses.json", losses)
    partial.rename(folder)


def _measure_base(scale: Scale, model: Any) -> dict[str, Any]:
    sets = evaluation_sets(scale, SEVERAL_FAMILIES)
    facts = base_facts(model, sets, scale.eval_samples)
    facts["sets"] = {
        "+".join(families): evaluate_sets(
            model, evaluation_sets(scale, families), scale.eval_samples
        )
        for families in (SEVERAL_FAMILIES, ONE_FAMILY)
    }
    return facts
