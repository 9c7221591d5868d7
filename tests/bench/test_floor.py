"""The floor does the products that it is named after, all of them and no more."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from sdkernels.bench import floor
from sdkernels.bench.cases import CASES
from sdkernels.bench.problem import Problem


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("frozen", [False, True])
def test_torch_counts_the_same_operations(setting, case, frozen, monkeypatch):
    monkeypatch.setattr(floor, "CHUNK_TOKENS", {"cpu": (7,)})  # and a last chunk of 2
    problem = Problem.make(setting(case, frozen=frozen))
    bare = floor.Floor(problem)
    with FlopCounterMode(display=False) as counter:
        bare(problem)
    assert counter.get_total_flops() == problem.setting.flops


def test_the_gradient_of_the_head_is_summed_over_chunks(setting, monkeypatch):
    monkeypatch.setattr(floor, "CHUNK_TOKENS", {"cpu": (8,)})
    problem = Problem.make(setting())
    bare = floor.Floor(problem)
    bare(problem)
    bare(problem)  # the first chunk writes over what the run before left
    with torch.no_grad():
        expected = bare.products.dz_CV.t() @ (problem.hidden_TD[:8] + problem.hidden_TD[8:])
    torch.testing.assert_close(bare.products.dw_VD, expected)


def test_bfloat16_products_end_in_float32(setting):
    problem = Problem.make(setting(dtype=torch.bfloat16))
    bare = floor.Floor(problem)
    bare(problem)
    assert bare.products.slab_CV.dtype == bare.products.dw_VD.dtype == torch.float32
    assert bare.products.dz_CV.dtype == torch.bfloat16


def test_the_copy_counts_what_it_reads_and_writes():
    copy = floor.DeviceCopy(torch.device("cpu"))
    copy()
    assert copy.moved_bytes == 2 * copy.target.nbytes
    assert torch.equal(copy.source, copy.target)


def test_the_fastest_chunks_are_taken(setting, monkeypatch):
    monkeypatch.setattr(floor, "CHUNK_TOKENS", {"cpu": (3, 8, 100)})
    monkeypatch.setattr(floor, "CHOICE_SECONDS", 0.0)
    clock = {3: [9.0, 2.0], 8: [4.0, 1.0], 16: [3.0, 3.0]}  # the first turn alone would take 16
    order = []

    def seconds(run, device):
        length = run.args[-1]
        order.append(length)
        return clock[length].pop(0)

    monkeypatch.setattr(floor, "seconds", seconds)
    problem = Problem.make(setting())
    bare = floor.Floor(problem)
    assert bare.products.chunks == [3, 8, 16]
    assert order == [3, 8, 16, 3, 8, 16]
    assert bare.chunk_tokens == 8
    with FlopCounterMode(display=False) as counter:
        bare(problem)
    assert counter.get_total_flops() == problem.setting.flops


def test_chunks_that_would_fill_the_memory_are_not_tried(setting, monkeypatch):
    monkeypatch.setattr(floor, "CHUNK_TOKENS", {"cpu": (4, 8, 16)})
    problem = Problem.make(setting())
    row = 300 * 8  # a float32 slab and a float32 gradient
    for free, chunks in ((None, [4, 8, 16]), (4 * 8 * row, [4, 8]), (1, [4])):
        monkeypatch.setattr(floor, "available_bytes", lambda device, free=free: free)
        assert floor.Floor(problem).products.chunks == chunks
