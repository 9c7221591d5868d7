"""Sums, means and clocks of a step."""

from __future__ import annotations

import mmap
import time
from types import SimpleNamespace

import pytest
import torch

from sdkernels.train.step_metrics import (
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
    assert not any(" " in name for name in values)
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
