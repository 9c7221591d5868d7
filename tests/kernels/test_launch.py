"""Launches as a device sees them, compiled for sm_90 with a stand-in for the driver."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

class NoDevice:
    get_current_device = lambda self: 0
    get_current_stream = lambda self, device: 0
    get_current_target = lambda self: GPUTarget("cuda", 90, 32)
    get_device_interface = lambda self: torch.cuda
    get_active_torch_device = lambda self: torch.device("cpu")

driver.set_active(NoDevice())
compiled = {}

def compile_only(kernel, grid):
    def run(*arguments, **options):
        binary = kernel.run(*arguments, grid=grid, warmup=True, **options)
        compiled.setdefault(kernel.fn.__name__, set()).add(binary.hash)
        assert not binary.metadata.enable_fp_fusion
    return run

JITFunction.__getitem__ = compile_only

from helpers.logit_problems import family
from sdkernels.engine.stats import DIFFERENTIABLE
from sdkernels.kernels import linear_statistics
from sdkernels.kernels.rescale import rescale
from sdkernels.rows import RowGate, RowSpec, Side
from sdkernels.rows.triton_rows import TritonRows

linear_statistics.architecture = lambda device: "sm_90"
spec = RowSpec(torch.float32, jsd_beta=0.3, entry_clip=0.001)

def drawn(count, first, shape, integers=False):
    # A slice of a tensor, as a chunk gets it.
    values = torch.randint(1000, (40,)) if integers else torch.rand(40)
    return values[first:first + count].view(shape)

def chunk(tokens, first):
    problem = family("small_random", tokens, 9008, spec=spec)
    ids = drawn(2 * tokens, first, (tokens, 2), integers=True)
    per_token = drawn(tokens, first, tokens)
    gate = RowGate(None, per_token, per_token, "tanh")
    rows = TritonRows()
    stats, state = rows.forward(problem.student, problem.teacher, ids, None, spec, gate)
    coefs = {name: per_token for name in stats if name in DIFFERENTIABLE}
    rows.backward(state, coefs | {"logp": drawn(2 * tokens, first, (tokens, 2))})
    hidden, weight = torch.randn(tokens, 64).bfloat16(), torch.randn(1000, 64).bfloat16()
    ids = drawn(tokens, first, (tokens, 1), integers=True)
    rows.fused.forward(hidden, weight, Side(hidden), ids, RowSpec(torch.float32), gate)
    rescale(torch.rand(9008, 64), drawn(1, first, ()))

for tokens, first in eval(sys.argv[2]):
    chunk(tokens, first)
print({name: len(hashes) for name, hashes in compiled.items()})
"""


@pytest.mark.parametrize(
    "chunks",
    [
        [(tokens, 0) for tokens in (1, 2, 3, 16, 20)],
        [(3, first) for first in (0, 1, 4)],  # where a chunk begins says how long the last was
    ],
    ids=["lengths", "places"],
)
def test_every_kernel_is_compiled_once_for_chunks_of_any(chunks: list[tuple[int, int]]) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(Path(__file__).parents[1]), str(chunks)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    names = ("statistics", "merge", "mixture", "merge_mixture", "chosen", "gradient", "put")
    expected = {f"{name}_kernel": 1 for name in (*names, "linear_statistics", "rescale")}
    expected["merge_kernel"] = 2  # of one model's sums and of two models'
    assert ast.literal_eval(done.stdout.strip().splitlines()[-1]) == expected
