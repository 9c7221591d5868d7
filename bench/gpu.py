"""`make gpu`: tests on the device, a memory check of each kernel, and shape A, in one command.

    python -m bench.gpu [--out FILE] [--skip-tests] [--tokens 8192 --hidden 4096 --vocab 151936]

Writes one JSON file (default: `$OUT/gpu.json`, else `bench/results/gpu-<date>.json`), beside it the
suite's results file `<hardware>-<date>.json`, and prints tables. Times of the former are medians of
CUDA events around one call, after warm-up; the floor is the bare matrix products of the same work,
timed in turn with the calls. Exit status: 0, 1 if a test or the memory check fails, 2 if there is
no GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

import sdkernels as sd
from sdkernels.kernels.launch import Logits
from sdkernels.kernels.linear_statistics import linear_partial_statistics
from sdkernels.kernels.merge import merge
from sdkernels.kernels.statistics import partial_statistics

from . import results, tables
from .__main__ import default_path
from .suite import gpu_entries, run_suite

ROOT = Path(__file__).parents[1]
TEST_SECONDS = 420
REPETITIONS = 7
# One launch of every kernel on a small problem with uneven edges.
SANITIZED = """
import sys; sys.path.insert(0, "tests")
import torch
from helpers.logit_problems import family
from sdkernels.kernels.linear_statistics import linear_partial_statistics
from sdkernels.rows import RowSpec
from sdkernels.rows.triton_rows import TritonRows
spec = RowSpec(torch.float32, jsd_beta=0.5, entry_clip=0.01)
family("small_random", 3, 5001, ids=3, spec=spec).run(TritonRows())
hidden, weight = torch.randn(130, 72, device="cuda"), torch.randn(1001, 72, device="cuda")
linear_partial_statistics(hidden.bfloat16(), weight.bfloat16())
linear_partial_statistics(hidden, weight, ids_TK=torch.zeros(130, 1, device="cuda").long())
torch.cuda.synchronize()
"""


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    import triton

    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "capability": f"{properties.major}.{properties.minor}",
        "memory_bytes": properties.total_memory,
        "torch": torch.__version__,
        "triton": triton.__version__,
        "cuda": torch.version.cuda,
        "hip": torch.version.hip,
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
    }


def run_tests() -> dict[str, Any]:
    """The kernel suite, compiled for this device."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        environment = {name: v for name, v in os.environ.items() if name != "TRITON_INTERPRET"}
        command = [sys.executable, "-m", "pytest", "-q", "--maxfail=20", f"--junitxml={report}"]
        # Mutants test the tests, and each of them compiles all kernels; the strict settings of
        # pyproject.toml want plugins that a GPU machine need not have.
        command += ["-k", "not mutant", "-o", "addopts=--import-mode=importlib"]
        command += ["tests/kernels", "tests/rows"]
        try:
            done = subprocess.run(
                command, cwd=ROOT, env=environment, timeout=TEST_SECONDS, check=False
            )
            status: int | str = done.returncode
        except subprocess.TimeoutExpired:
            status = f"stopped after {TEST_SECONDS} s"
        counts = {}
        if report.exists():
            suite = next(ElementTree.parse(report).iter("testsuite"))
            names = ("tests", "failures", "errors", "skipped", "time")
            counts = {name: float(suite.get(name, 0)) for name in names}
    return {"status": status, **counts}


def run_sanitizer() -> dict[str, Any]:
    """compute-sanitizer memcheck on one small case of every kernel."""
    tool = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    if not Path(tool).exists():
        return {"status": "compute-sanitizer is not installed, nothing was checked"}
    command = [tool, "--tool", "memcheck", "--error-exitcode", "9", sys.executable, "-c", SANITIZED]
    environment = {**os.environ, "PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    try:
        done = subprocess.run(
            command,
            cwd=ROOT,
            env=environment,
            timeout=180,
            capture_output=True,
            text=True,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return {"status": "stopped after 180 s"}
    return {"status": done.returncode, "output": (done.stdout + done.stderr)[-1500:]}


# --- benchmark ----------------------------------------------------------------------------------


def milliseconds(runs: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
    """Times of each call, the calls taken in turn so that clock and heat treat them alike."""
    for run in runs.values():
        run()
        run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(REPETITIONS):
        for name, run in runs.items():
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            torch.cuda.synchronize()
            start.record()
            run()
            end.record()
            end.synchronize()
            times[name].append(start.elapsed_time(end))
    return times


def peak_bytes(run: Callable[[], object]) -> int:
    """Highest allocation during the call beyond that before it."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def benchmark(tokens: int, hidden: int, vocab: int) -> dict[str, Any]:
    """Shape A: losses forward and backward, statistics forward, and the row kernels alone."""

    def normal(*shape: int, scale: float = 1.0) -> torch.Tensor:
        return (torch.randn(*shape, device="cuda") * scale).bfloat16()

    h, ht = normal(tokens, hidden).requires_grad_(), normal(tokens, hidden)
    w = normal(vocab, hidden, scale=2 / hidden**0.5).requires_grad_()
    wt = normal(vocab, hidden, scale=2 / hidden**0.5)
    ids = torch.randint(vocab, (tokens,), device="cuda")
    teacher, shared = sd.HiddenTeacher(ht, wt), sd.HiddenTeacher(ht, w.detach())

    def loss(name: str | None, who: sd.HiddenTeacher | None, **more: Any) -> Callable[[], None]:
        def run() -> None:
            h.grad = w.grad = None
            value, _ = sd.token_loss(
                h,
                w,
                lambda s, tok: s.logp + 0.1 * s.entropy if name is None else s[name],
                targets=ids if name is None else None,
                teacher=who,
                backend="triton",
                **more,
            )
            value.backward()

        return run

    @torch.no_grad()
    def slab_statistics() -> None:
        sd.token_stats(h, w, targets=ids, backend="triton")

    def fused_statistics() -> None:
        sums = linear_partial_statistics(h.detach(), w.detach(), ids_TK=ids[:, None])
        merge(sums.partials_CFP, vocab=vocab, ids_CK=ids[:, None], chosen_CK=sums.chosen_CK)

    def fused_entropy() -> None:
        merge(linear_partial_statistics(h.detach(), w.detach()).partials_CFP, vocab=vocab)

    chunk = min(2048, tokens)
    slab = torch.empty(chunk, vocab, device="cuda")
    dz, dw = normal(chunk, vocab), torch.empty(vocab, hidden, device="cuda")

    @torch.no_grad()
    def floor(products: int) -> None:
        """`products` logit products (1 or 2), and 2 for the gradients unless there is none."""
        for lo in range(0, tokens, chunk):
            rows = slice(lo, lo + chunk)
            count = h[rows].shape[0]
            torch.mm(h[rows], w.t(), out_dtype=torch.float32, out=slab[:count])
            if products == 0:
                continue
            if products == 2:
                torch.mm(ht[rows], wt.t(), out_dtype=torch.float32, out=slab[:count])
            torch.mm(dz[:count], w)
            torch.mm(dz[:count].t(), h[rows], out_dtype=torch.float32, out=dw)

    runs: dict[str, Callable[[], object]] = {
        "floor 8TDV": lambda: floor(2),
        "kl_teacher_student": loss("kl_teacher_student", teacher),
        "kl_teacher_student, shared head": loss("kl_teacher_student", shared),
        "kl_student_teacher": loss("kl_student_teacher", teacher),
        "jsd": loss("jsd", teacher, jsd_beta=0.5),
        "floor 6TDV": lambda: floor(1),
        "logp + entropy": loss(None, None),
        "floor 2TDV": lambda: floor(0),
        "logp + entropy, forward, slab": slab_statistics,
        "logp + entropy, forward, fused": fused_statistics,
        "entropy, forward, fused": fused_entropy,
    }
    times = milliseconds(runs)
    peaks = {name: peak_bytes(run) for name, run in runs.items() if not name.startswith("floor")}
    h.grad = w.grad = None
    floors = {name: statistics.median(v) for name, v in times.items() if name.startswith("floor")}
    rows, under = {}, ""
    for name, values in times.items():
        under = name if name in floors else under
        rows[name] = {
            "median_ms": statistics.median(values),
            "min_ms": min(values),
            "max_ms": max(values),
            "over_floor": statistics.median(values) / floors[under],
            "peak_extra_bytes": peaks.get(name),
        }
    return {
        "shape": [tokens, hidden, vocab],
        "calls": rows,
        "row kernels": _row_kernels(slab, vocab),
    }


def _row_kernels(slab: torch.Tensor, vocab: int) -> dict[str, Any]:
    """The statistics pass alone, against the bytes it must read."""
    student = Logits.of(slab.normal_())
    other = Logits.of(torch.randn_like(slab))
    runs: dict[str, Callable[[], object]] = {
        "statistics, one slab": lambda: partial_statistics(student, None, None),
        "statistics, two slabs": lambda: partial_statistics(student, other, None),
    }
    found = {}
    for (name, values), slabs in zip(milliseconds(runs).items(), (1, 2), strict=True):
        seconds = statistics.median(values) / 1e3
        found[name] = {
            "median_ms": seconds * 1e3,
            "bytes_per_second": slabs * slab.nbytes / seconds,
        }
    return found


def _print(result: dict[str, Any]) -> None:
    machine, shape = result["machine"], result["benchmark"]["shape"]
    print(
        f"\n{machine['gpu']}, torch {machine['torch']}, Triton {machine['triton']}, shape {shape}"
    )
    print(f"{'call':34}{'ms':>9}{'x floor':>9}{'MiB':>9}")
    for name, row in result["benchmark"]["calls"].items():
        peak = "" if row["peak_extra_bytes"] is None else f"{row['peak_extra_bytes'] / 2**20:.0f}"
        print(f"{name:34}{row['median_ms']:9.2f}{row['over_floor']:9.3f}{peak:>9}")
    for name, row in result["benchmark"]["row kernels"].items():
        print(f"{name:34}{row['median_ms']:9.2f}  {row['bytes_per_second'] / 1e12:.2f} TB/s")
    print(
        f"tests: {result.get('tests')}\nmemory check: {result.get('sanitizer', {}).get('status')}"
    )


def _suite(limit_seconds: float, folder: Path) -> None:
    """The peers, most wanted runs first; what there was no time for is listed in the file."""
    device = torch.device("cuda")
    command = f"python -m bench.gpu --suite-seconds {limit_seconds:g}"
    found = run_suite(gpu_entries(), device, command, limit_seconds=limit_seconds)
    path = folder / default_path(device).name
    results.write(path, found)
    print(f"\n{tables.text(found)}\n\nwritten to {path}")


def _default_out() -> Path:
    if "OUT" in os.environ:
        return Path(os.environ["OUT"]) / "gpu.json"
    return Path(__file__).parent / "results" / f"gpu-{datetime.date.today().isoformat()}.json"


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu")
    parser.add_argument("--out", type=Path, default=_default_out())
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument(
        "--suite-seconds",
        type=float,
        default=120.0,
        help="no run of the benchmark suite is begun after this time; 0: none",
    )
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        print(
            "no GPU here: torch.cuda.is_available() is False, so nothing was tested or measured. "
            "Run `make gpu` on a machine with a CUDA or ROCm device and a torch built for it; "
            "`make test` and `make aot` are what runs without one.",
            file=sys.stderr,
        )
        return 2
    result: dict[str, Any] = {"machine": machine()}
    failed = False
    if not options.skip_tests:
        result["tests"] = run_tests()
        result["sanitizer"] = run_sanitizer()
        failed = result["tests"]["status"] != 0 or result["sanitizer"]["status"] == 9
    result["benchmark"] = benchmark(options.tokens, options.hidden, options.vocab)
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.out.write_text(json.dumps(result, indent=1) + "\n")
    _print(result)
    if options.suite_seconds > 0:
        _suite(options.suite_seconds, options.out.parent)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
