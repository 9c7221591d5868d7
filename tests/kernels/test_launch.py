"""Launches as a device sees them, compiled for sm_90 with a stand-in for the driver."""

import ast
import os
import subprocess
import sys
from pathlib import Path

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
from sdkernels.kernels import linear_statistics
from sdkernels.rows import RowSpec
from sdkernels.rows.triton_rows import TritonRows

linear_statistics.architecture = lambda device: "sm_90"
spec = RowSpec(torch.float32, jsd_beta=0.3, entry_clip=0.001)
for tokens in (1, 2, 3, 16, 32):
    family("small_random", tokens, 9008, ids=2, spec=spec).run(TritonRows())
    hidden, weight = torch.randn(tokens, 64).bfloat16(), torch.randn(1000, 64).bfloat16()
    ids = torch.zeros(tokens, 1).long()
    linear_statistics.linear_partial_statistics(hidden, weight, ids_TK=ids)
print({name: len(hashes) for name, hashes in compiled.items()})
"""


def test_every_kernel_is_compiled_once_for_any_number_of_tokens() -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, str(Path(__file__).parents[1])],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    names = ("statistics", "merge", "mixture", "merge_mixture", "chosen", "gradient", "put")
    expected = {f"{name}_kernel": 1 for name in (*names, "linear_statistics")}
    assert ast.literal_eval(done.stdout.strip().splitlines()[-1]) == expected
