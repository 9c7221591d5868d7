"""The kernel tests on a GPU, and compute-sanitizer over one small launch of every kernel."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
# With shape A (half a minute) and the suite (two minutes), `make gpu` stays within ten minutes.
TEST_SECONDS = 270
SANITIZER_SECONDS = 90
# What only a device can show comes first, in case the time runs out.
TESTS = (
    "kernels/test_device.py",
    "rows/test_triton_rows.py",
    "kernels/test_linear_statistics.py",
    "kernels/test_engine.py",
    "kernels/test_merge.py",
    "kernels/test_transform.py",
    "kernels/test_overflow.py",
    "rows/test_partials.py",
    "engine/test_gating.py",
    "engine/test_slab_free.py",
    "engine/test_row_scale.py",
)
# One launch of every kernel on a small problem with uneven edges.
SANITIZED = """
import sys; sys.path.insert(0, "tests")
import torch
from helpers.logit_problems import family
from sdkernels.kernels.linear_statistics import linear_partial_statistics
from sdkernels.kernels.rescale import rescale
from sdkernels.rows import RowSpec
from sdkernels.rows.triton_rows import TritonRows
spec = RowSpec(torch.float32, jsd_beta=0.5, entry_clip=0.01)
family("small_random", 3, 5001, ids=3, spec=spec).run(TritonRows())
hidden, weight = torch.randn(130, 72, device="cuda"), torch.randn(1001, 72, device="cuda")
linear_partial_statistics(hidden.bfloat16(), weight.bfloat16())
linear_partial_statistics(hidden, weight, ids_TK=torch.zeros(130, 1, device="cuda").long())
rescale(weight, torch.full((), 0.5, device="cuda"))
torch.cuda.synchronize()
"""
SANITIZER_FOUND = 9


def run_tests(
    tests: Sequence[str] = TESTS,
    seconds: float = TEST_SECONDS,
) -> dict[str, Any]:
    """The kernel suite, compiled for this device: `status` "passed" or what went wrong, and counts.

    A suite that takes longer than `seconds` is interrupted and reports how far it came.
    """
    if importlib.util.find_spec("pytest") is None:
        return {"status": "pytest is not installed, no test ran"}
    if not (ROOT / "tests").is_dir():
        return {"status": f"{ROOT} is no checkout, no test ran"}
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
        command = [sys.executable, "-m", "pytest", "-q", "--maxfail=20", f"--junitxml={report}"]
        # Mutants test the tests, and each of them compiles all kernels; the strict settings of
        # pyproject.toml want plugins that a GPU machine need not have.
        command += [
            "-k",
            "not mutant",
            "-o",
            "addopts=--import-mode=importlib",
            *(str(ROOT / "tests" / name) for name in tests),
        ]
        process = subprocess.Popen(command, cwd=ROOT, env=environment)
        try:
            code = process.wait(seconds)
            status = "passed" if code == 0 else f"failed (pytest's status {code})"
        except subprocess.TimeoutExpired:
            status = f"stopped after {seconds:g} s"
            process.send_signal(signal.SIGINT)  # pytest still writes its report
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        return {"status": status, **_counts(report)}


def _counts(report: Path) -> dict[str, float]:
    if not report.exists():
        return {}
    suite = next(ElementTree.parse(report).iter("testsuite"))
    return {
        name: float(suite.get(name, 0))
        for name in ("tests", "failures", "errors", "skipped", "time")
    }


def run_sanitizer() -> dict[str, Any]:
    """compute-sanitizer memcheck on one small case of every kernel: `status` "no error", "errors
    found", or why it says nothing.
    """
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        return {"status": "not run: compute-sanitizer is not installed"}
    command = [tool, "--tool", "memcheck", "--error-exitcode", str(SANITIZER_FOUND)]
    command += [sys.executable, "-c", SANITIZED]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            timeout=SANITIZER_SECONDS,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"status": f"not finished within {SANITIZER_SECONDS} s"}
    found = {0: "no error", SANITIZER_FOUND: "errors found"}
    status = found.get(done.returncode, f"not run: status {done.returncode}")
    return {"status": status, "output": (done.stdout + done.stderr)[-1500:]}
