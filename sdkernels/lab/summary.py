"""From cells to numbers with intervals: changes from the base model, over seeds and problems.

Both are resampled (seeds with replacement, problems with replacement, the same problems for all
seeds), because both are samples of what the numbers are about. Everything is paired: the base
model and all conditions answer the same problems.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from sdkernels.lab.cell import cell_file
from sdkernels.lab.conditions import Cell
from sdkernels.lab.evaluate import PER_PROBLEM

RESAMPLES = 2000
FRESH_SETS = ("in_domain", "longer", "other")
SETS = ("seen", *FRESH_SETS)


@dataclass(frozen=True)
class Estimate:
    """A mean and its 95 % bootstrap interval."""

    mean: float
    low: float
    high: float

    def as_list(self) -> list[float]:
        """`[mean, low, high]`."""
        return [self.mean, self.low, self.high]


class Results:
    """The cells that are done, by group, and the base model.

    Args:
        output: the folder of a run.
        cells: those to read; what is not there yet is left out.

    Raises:
        ValueError: none of them is done.
    """

    def __init__(self, output: Path, cells: Sequence[Cell]) -> None:
        self.facts: dict[str, Any] = _read(output / "base.json")
        self.groups: dict[str, list[dict[str, Any]]] = {}
        self.cells: dict[str, Cell] = {}
        for cell in cells:
            path = cell_file(output, cell)
            if path.exists():
                self.groups.setdefault(cell.group, []).append(_read(path))
                self.cells.setdefault(cell.group, cell)
        if not self.groups:
            raise ValueError(f"output={output}: no cell is done yet, so there is nothing to show")

    def has(self, *groups: str) -> bool:
        """Whether all of these groups have a cell."""
        return all(group in self.groups for group in groups)

    def seeds(self, group: str) -> list[int]:
        """The seeds that are done."""
        return [one["cell"]["seed"] for one in self.groups[group]]

    def values(self, group: str, part: str, metric: str) -> np.ndarray:
        """The metric after training `[seeds, problems]` on a set."""
        return np.array([one["sets"][part]["problems"][metric] for one in self.groups[group]])

    def base_values(self, group: str, part: str, metric: str) -> np.ndarray:
        """The metric of the base model on the same problems, `[seeds or 1, problems]`."""
        if part == "seen":
            return np.array([one["base_seen"]["problems"][metric] for one in self.groups[group]])
        families = "+".join(self.cells[group].families)
        return np.array([self.facts["sets"][families][part]["problems"][metric]])

    def level(self, group: str, part: str, metric: str) -> Estimate:
        """The metric after training."""
        return bootstrap(self.values(group, part, metric))

    def change(self, group: str, part: str, metric: str) -> Estimate:
        """The metric after training minus that of the base model."""
        return bootstrap(self.changes(group, part, metric))

    def changes(self, group: str, part: str, metric: str) -> np.ndarray:
        """What `change` is the mean of."""
        return self.values(group, part, metric) - self.base_values(group, part, metric)

    def difference(self, group: str, other: str, part: str, metric: str) -> Estimate:
        """The change of `group` minus that of `other`, paired by seed where both have it.

        Coverages have different training problems, so on "seen" only seeds are paired.
        """
        ours, theirs = self.seeds(group), self.seeds(other)
        both = [seed for seed in ours if seed in theirs]
        mine = self.changes(group, part, metric)[[ours.index(seed) for seed in both]]
        yours = self.changes(other, part, metric)[[theirs.index(seed) for seed in both]]
        if mine.shape != yours.shape:
            mine, yours = mine.mean(1, keepdims=True), yours.mean(1, keepdims=True)
        return bootstrap(mine - yours)

    def summary(self) -> dict[str, Any]:
        """Everything the tables and plots show, without the numbers of single problems."""
        groups = []
        for group, cells in self.groups.items():
            cell = self.cells[group]
            sets = {
                part: {
                    metric: {
                        "level": self.level(group, part, metric).as_list(),
                        "change": self.change(group, part, metric).as_list(),
                    }
                    for metric in PER_PROBLEM
                }
                | {"steps": _mean_shares([one["sets"][part] for one in cells])}
                for part in SETS
            }
            groups.append(
                {
                    "condition": cell.condition,
                    "coverage": cell.coverage,
                    "families": list(cell.families),
                    "seeds": self.seeds(group),
                    "sets": sets,
                }
            )
        return {"base": without_problems(self.facts), "groups": groups}


def bootstrap(values: np.ndarray, *, seed: int = 0) -> Estimate:
    """Mean of `[seeds, problems]` and its 95 % interval, both axes resampled."""
    rng = np.random.default_rng(seed)
    num_seeds, num_problems = values.shape
    seeds = rng.integers(0, num_seeds, (RESAMPLES, num_seeds, 1))
    problems = rng.integers(0, num_problems, (RESAMPLES, 1, num_problems))
    means = values[seeds, problems].mean(axis=(1, 2))
    low, high = np.quantile(means, [0.025, 0.975])
    return Estimate(float(values.mean()), float(low), float(high))


def without_problems(content: Any) -> Any:
    """The same, without the lists of single problems."""
    if not isinstance(content, Mapping):
        return content
    return {key: without_problems(value) for key, value in content.items() if key != "problems"}


def _mean_shares(sets: Sequence[Mapping[str, Any]]) -> dict[str, float | None]:
    names = ("guess_accuracy", "noticed", "doubted", "rescued", "well_formed", "truncated")
    found: dict[str, float | None] = {}
    for name in names:
        values = [one[name] for one in sets if one[name] is not None]
        found[name] = sum(values) / len(values) if values else None
    return found


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))
