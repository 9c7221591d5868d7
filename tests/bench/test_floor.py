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
    monkeypatch.setattr(floor, "CHUNK_TOKENS", {"cpu": 7})  # and a last chunk of 2
    problem = Problem.make(setting(case, frozen=frozen))
    bare = floor.Floor(problem)
    with FlopCounterMode(display=False) as counter:
        bare(problem)
    assert counter.get_total_flops() == problem.setting.flops


def test_the_gradient_of_the_head_is_summed_over_chunks(setting, monkeypatch):
    monkeypatch.setattr(floor, "CHUNK_TOKENS", {"cpu": 8})
    problem = Problem.make(setting())
    bare = floor.Floor(problem)
    bare(problem)
    bare(problem)  # the first chunk writes over what the run before left
    with torch.no_grad():
        expected = bare.dz_CV.t() @ (problem.hidden_TD[:8] + problem.hidden_TD[8:])
    torch.testing.assert_close(bare.dw_VD, expected)


def test_bfloat16_products_end_in_float32(setting):
    problem = Problem.make(setting(dtype=torch.bfloat16))
    bare = floor.Floor(problem)
    bare(problem)
    assert bare.slab_CV.dtype == bare.dw_VD.dtype == torch.float32
    assert bare.dz_CV.dtype == torch.bfloat16


def test_the_copy_counts_what_it_reads_and_writes():
    copy = floor.DeviceCopy(torch.device("cpu"))
    copy()
    assert copy.moved_bytes == 2 * copy.target.nbytes
    assert torch.equal(copy.source, copy.target)
