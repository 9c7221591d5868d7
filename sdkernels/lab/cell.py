"""A cell from base model to numbers, in this process or in a worker."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sdkernels.lab.base_facts import evaluate_sets
from sdkernels.lab.conditions import Cell
from sdkernels.lab.distill import train_cell, training_problems
from sdkernels.lab.evaluate import ProblemSet, problem_sets
from sdkernels.lab.model import load
from sdkernels.lab.scales import OTHER_FAMILIES, Scale
from sdkernels.train.records import write_json

# A set of one problem is sampled this often in all, so that its accuracy is not a coin toss.
SEEN_RESPONSES = 32


def evaluation_sets(scale: Scale, families: tuple[str, ...]) -> list[ProblemSet]:
    """The sets that every cell of these families is evaluated on."""
    return problem_sets(
        families,
        OTHER_FAMILIES,
        lengths=scale.distill.lengths,
        long_lengths=scale.long_lengths,
        size=scale.eval_problems,
        seed=scale.base.seed,
    )


def run_cell(scale: Scale, cell: Cell, base: Any) -> dict[str, Any]:
    """Train and evaluate one cell; the training problems are none of those evaluated on.

    Returns:
        `cell`; `sets`: evaluations of the trained model by set, "seen" for (at most
        `eval_problems` of) its training problems; `base_seen`: the base model on those; `steps`:
        the records of training; `seconds`.
    """
    started = time.perf_counter()
    sets = evaluation_sets(scale, cell.families)
    fresh = frozenset(problem for one in sets for problem in one.problems)
    problems = training_problems(cell, scale.distill, without=fresh)
    model, steps = train_cell(base, cell, scale.distill, problems)
    seen = [ProblemSet("seen", tuple(problems[: scale.eval_problems]))]
    samples = max(scale.eval_samples, SEEN_RESPONSES // len(seen[0].problems))
    return {
        "cell": asdict(cell),
        "sets": evaluate_sets(model, sets, scale.eval_samples)
        | evaluate_sets(model, seen, samples),
        "base_seen": evaluate_sets(base, seen, samples)["seen"],
        "steps": steps,
        "seconds": time.perf_counter() - started,
    }


def cell_file(output: Path, cell: Cell) -> Path:
    """Where the cell's numbers are."""
    return output / "cells" / f"{cell.name}.json"


def work(scale: Scale, cell: Cell, output: Path, device: str) -> float:
    """Run a cell with the base model of `output`, write its file, return the seconds it took.

    One thread: the matrices are small, and sums then do not depend on the number of cores.
    """
    if device == "cpu":
        torch.set_num_threads(1)
    result = run_cell(scale, cell, load(output / "base", device))
    write_json(cell_file(output, cell), result)
    return float(result["seconds"])
