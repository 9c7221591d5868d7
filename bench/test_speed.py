"""pytest-benchmark cases: sdkernels, eager PyTorch and the bare products, to compare two checkouts.

    pytest bench --benchmark-autosave              # before a change
    pytest bench --benchmark-compare               # after it

`python -m bench` is what measures against other libraries.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from . import cases, peers, shapes
from .check import bounds_of
from .floor import Floor
from .problem import Problem, Setting, float64_answer
from .runner import call, checked_row

ROUNDS = 20
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NAMES = ("sdkernels", "eager")


def setting(case: str) -> Setting:
    """512 tokens of the small shape."""
    return Setting(cases.get(case), shapes.get("small"), 512, device=DEVICE)


def synchronised(function: Any, *arguments: Any) -> None:
    """The call and, on a GPU, its end."""
    function(*arguments)
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


@pytest.mark.parametrize("case", cases.CASES)
@pytest.mark.parametrize("name", NAMES)
def test_speed(benchmark: Any, case: str, name: str) -> None:
    """Right first, then timed."""
    (peer,) = peers.select([name], case)
    problem = Problem.make(setting(case))
    answer = float64_answer(problem)
    bounds = bounds_of(problem, answer)
    row = checked_row(peer, problem, answer, bounds, problem.setting)
    assert row["status"] == "ok", row
    benchmark.group = case
    benchmark.extra_info |= {key: row[key] for key in ("value_error", "gradient_error")}
    benchmark.pedantic(
        lambda: synchronised(call, peer, problem),
        setup=problem.clear,
        rounds=ROUNDS,
        warmup_rounds=1,
    )


@pytest.mark.parametrize("case", cases.CASES)
def test_floor(benchmark: Any, case: str) -> None:
    """The bare matrix products of the same case."""
    problem = Problem.make(setting(case))
    floor = Floor(problem)
    benchmark.group = case
    benchmark.pedantic(lambda: synchronised(floor, problem), rounds=ROUNDS, warmup_rounds=1)
