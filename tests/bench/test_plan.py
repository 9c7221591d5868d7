"""`--plan` says what the engine's own plan says."""

import re

import pytest
import torch

from sdkernels.bench import plan
from sdkernels.bench.cases import CASES


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("frozen", [False, True])
def test_operations_are_those_of_the_setting(setting, case, frozen):
    """The suite's own count and the engine's agree."""
    one = setting(case, tokens=4096, shape="2048x151936", frozen=frozen, dtype=torch.bfloat16)
    tflops = float(re.search(r"([\d.]+) TFLOP", plan.text(one))[1])
    assert tflops == pytest.approx(one.flops / 1e12, abs=0.005)


def test_shape_a_on_paper(setting):
    text = plan.text(setting(tokens=8192, shape="4096x151936", dtype=torch.bfloat16))
    assert "40.79 TFLOP" in text
    assert "products 8, statistics 8, gradient 10 bytes a logit" in text
    chunks, tokens = map(int, re.search(r"(\d+) of (\d+) tokens", text).groups())
    assert (chunks - 1) * tokens < 8192 <= chunks * tokens
    slabs, budget = map(float, re.search(r"([\d.]+) GiB of a budget of ([\d.]+)", text).groups())
    # Two float32 slabs and a bfloat16 gradient.
    assert slabs == pytest.approx(tokens * 151936 * 10 / 2**30, abs=0.006)
    assert slabs <= budget
    assert "nothing was run" in text
