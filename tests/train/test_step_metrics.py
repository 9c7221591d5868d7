"""Sums, means and clocks of a step."""

from __future__ import annotations

import mmap
import time
from types import SimpleNamespace

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from sdkernels.train.step_metrics import (
    LISTS,
    MEANS,
    SECTIONS,
    StepMetrics,
    Timers,
    peak_memory_bytes,
    reset_peak_memory,
)

ALONE = SimpleNamespace(num_processes=1)


def test_means_are_over_all_entries_and_missing_ones_are_none():
    metrics = StepMetrics()
    metrics.add("gap", torch.tensor(6.0), torch.tensor(2))
    metrics.add("gap", 3.0, 4)
    metrics.add("num_tokens", 6)
    metrics.add("entropy", torch.tensor(0.0), torch.tensor(0))
    values = metrics.take(ALONE)
    assert values["gap"] == 1.5  # not the mean of 3 and 0.75
    assert values["num_tokens"] == 6
    assert values["entropy"] is None
    assert values["reward"] is None
    assert metrics.take(ALONE)["gap"] is None  # taken once


def test_ranks_are_added_up():
    class Two:
        num_processes, device = 2, "cpu"

        def reduce(self, tensor, reduction):
            assert reduction == "sum"
            return tensor * 2

    metrics = StepMetrics()
    metrics.add("gap", 3.0, 2)
    metrics.add("num_tokens", 5)
    values = metrics.take(Two())
    assert (values["gap"], values["num_tokens"]) == (1.5, 10)


class Reads(TorchDispatchMode):
    """Counts numbers that are read one by one, each of which would wait for a device."""

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += function is torch.ops.aten._local_scalar_dense.default
        return function(*args, **kwargs or {})


def test_numbers_are_not_read_one_by_one():
    metrics = StepMetrics()
    for at, name in enumerate(MEANS):
        kind = torch.float64 if at % 3 else torch.float32
        metrics.add(name, torch.tensor(float(at), dtype=kind), torch.tensor(2))
    metrics.add("num_tokens", torch.tensor(9), 4)
    for name in LISTS:
        metrics.add(name, torch.arange(10.0), torch.arange(10) % 2)
    with Reads() as reads:
        values = metrics.take(ALONE)
    assert reads.count == 0
    assert [values[name] for name in MEANS] == [at / 2 for at in range(len(MEANS))]
    assert values["num_tokens"] == 9
    for name in LISTS:
        assert values[name] == [float(at) if at % 2 else None for at in range(10)]


def test_an_infinite_mean_stays_one():
    metrics = StepMetrics()
    metrics.add("kl_teacher_student", float("inf"), 2)
    assert metrics.take(ALONE)["kl_teacher_student"] == float("inf")


def test_lists_have_a_mean_per_decile():
    metrics = StepMetrics()
    counts = torch.tensor([2.0, 1.0] + [0.0] * 8)
    metrics.add("gap_by_entropy_decile", torch.tensor([3.0, -1.0] + [0.0] * 8), counts)
    metrics.add("gap_by_entropy_decile", torch.tensor([3.0, 0.0] + [0.0] * 8), counts)
    values = metrics.take(ALONE)
    assert values["gap_by_entropy_decile"] == [1.5, -0.5] + [None] * 8
    assert values["direction_by_entropy_decile"] is None
    assert metrics.take(ALONE)["gap_by_entropy_decile"] is None


def test_clocks():
    timers = Timers(torch.device("cpu"))
    for _ in range(2):
        with timers.section("loss"):
            time.sleep(0.02)
    timers.start("backward")
    timers.stop("backward")
    timers.stop("optimizer")  # was never started
    seconds = timers.take()
    assert set(seconds) == set(SECTIONS)
    assert 0.04 <= seconds["loss"] < 1
    assert seconds["backward"] >= 0
    assert seconds["optimizer"] is None
    assert timers.take()["loss"] is None


def test_a_section_that_fails_is_timed_too():
    timers = Timers(torch.device("cpu"))
    with pytest.raises(ValueError, match="x"), timers.section("loss"):
        raise ValueError("x")
    assert timers.take()["loss"] is not None


def test_peak_memory_goes_up_and_can_be_reset():
    reset_peak_memory()
    before = peak_memory_bytes()
    with mmap.mmap(-1, 64 << 20) as block:  # pages that no earlier test has left in the heap
        for start in range(0, 64 << 20, 4096):
            block[start] = 1
    assert peak_memory_bytes() - before > 48 << 20
    reset_peak_memory()
    assert peak_memory_bytes() > 1 << 20


def test_counts_over_ranks_are_exact():
    one = SimpleNamespace(num_processes=2, device="cpu", reduce=lambda tensor, reduction: tensor)
    metrics = StepMetrics()
    metrics.add("num_tokens", 1_000_003)
    assert metrics.take(one)["num_tokens"] == 1_000_003
