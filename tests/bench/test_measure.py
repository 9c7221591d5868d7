"""Clock and memory."""

import time

import pytest
import torch

from sdkernels.bench import measure

CPU = torch.device("cpu")
MIB = 1 << 20


def test_seconds_of_a_call():
    assert 0.02 <= measure.seconds(lambda: time.sleep(0.02), CPU) < 1.0


def test_spread():
    found = measure.spread([5.0, 1.0, 2.0, 3.0, 4.0])
    assert found == {
        "median": 3.0,
        "quartile_low": 2.0,
        "quartile_high": 4.0,
        "min": 1.0,
        "max": 5.0,
        "repeats": 5,
    }
    assert measure.spread([2.0])["quartile_high"] == 2.0


def test_peak_memory_sees_what_is_freed_again_before_the_end():
    def run():
        block = torch.ones(64 * MIB, dtype=torch.uint8)
        del block
        torch.ones(8 * MIB, dtype=torch.uint8)

    torch.ones(128 * MIB, dtype=torch.uint8)  # freed before: must hide nothing
    extra = measure.peak_extra_bytes(run, CPU)
    if extra is None:
        pytest.skip("this system does not reset its memory peak")
    assert 62 * MIB <= extra <= 72 * MIB


def test_small_blocks_that_were_freed_do_not_hide_a_later_peak():
    def run():
        return [torch.ones(MIB, dtype=torch.uint8) for _ in range(48)]

    run()
    extra = measure.peak_extra_bytes(run, CPU)
    if extra is None:
        pytest.skip("this system does not reset its memory peak")
    assert extra >= 44 * MIB


def test_cache_and_free_memory_are_sizes():
    assert 1 << 15 <= measure.cache_bytes(CPU) <= 1 << 33
    free = measure.available_bytes(CPU)
    assert free is None or free > 1 << 20
