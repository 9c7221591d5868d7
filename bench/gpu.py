"""`make gpu`: tests on the device, shape A, the suite, and a memory check of each kernel.

    python -m bench.gpu [--out FILE] [--skip-tests] [--tokens 8192 --hidden 4096 --vocab 151936]

Writes one JSON file (default: `$OUT/gpu.json`, else `bench/results/gpu-<date>.json`), beside it the
suite's results file `<hardware>-<date>.json`, and prints tables, that of shape A last. The file is
written after every part, the suite's after every run. Exit status: 0, 1 if a test, a run of the
suite or the memory check fails, 2 if the kernels cannot run here.
"""

from __future__ import annotations

import argparse
import datetime
import os
import sys
import traceback
from pathlib import Path
from typing import Any

import torch

from sdkernels.kernels import unavailable_reason

from . import files
from .flags import seconds_or_none
from .gpu_checks import run_sanitizer, run_tests
from .peer import one_line


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


def cannot_run() -> str | None:
    """Why nothing can be tested or measured here; None: it can."""
    if not torch.cuda.is_available():
        return (
            "no GPU here: torch.cuda.is_available() is False, so nothing was tested or measured. "
            "Run `make gpu` on a machine with a CUDA or ROCm device and a torch built for it; "
            "`make test` and `make aot` are what runs without one."
        )
    reason = unavailable_reason(torch.device("cuda"))
    return None if reason is None else f"the kernels cannot run on this GPU: {reason}"


def table(result: dict[str, Any]) -> str:
    """The result in a few lines."""
    machine, shape = result["machine"], result["benchmark"]["shape"]
    lines = [
        f"{machine['gpu']}, torch {machine['torch']}, Triton {machine['triton']}, shape {shape}",
        f"{'call':34}{'ms':>9}{'x floor':>9}{'MiB':>9}",
    ]
    for name, row in result["benchmark"]["calls"].items():
        peak = "" if row["peak_extra_bytes"] is None else f"{row['peak_extra_bytes'] / 2**20:.0f}"
        lines.append(f"{name:34}{row['median_ms']:9.2f}{row['over_floor']:9.3f}{peak:>9}")
    for name, row in result["benchmark"]["row kernels"].items():
        rate = row["bytes_per_second"] / 1e12
        lines.append(f"{name:34}{row['median_ms']:9.2f}  {rate:.2f} TB/s")
    tests = result.get("tests", {"status": "skipped"})
    counts = ", ".join(f"{name} {value:g}" for name, value in tests.items() if name != "status")
    lines.append(f"tests: {tests['status']}" + (f" ({counts})" if counts else ""))
    if "suite" in result:
        lines.append(f"suite: {result['suite']['status']}")
    lines.append(f"memory check: {result.get('sanitizer', {'status': 'skipped'})['status']}")
    return "\n".join(lines)


def failed(result: dict[str, Any]) -> bool:
    """Whether a test, the suite or the memory check found something, or tests were stopped."""
    tests = result.get("tests", {"status": "passed"})["status"]
    suite = result.get("suite", {"status": "passed"})["status"]
    found = result.get("sanitizer", {}).get("status") == "errors found"
    return tests != "passed" or suite != "passed" or found


def _suite(limit_seconds: float, folder: Path) -> dict[str, Any]:
    """The peers, most wanted runs first; what there was no time for is listed in the file. What
    fails is this part alone.
    """
    try:
        failures = _run_suite(limit_seconds, folder)
    except Exception as error:
        traceback.print_exc()
        return {"status": f"failed: {type(error).__name__}: {one_line(error)}"}
    return {"status": f"failed: {'; '.join(failures)}" if failures else "passed"}


def _run_suite(limit_seconds: float, folder: Path) -> list[str]:
    from .__main__ import default_path
    from .suite import gpu_entries, jobs, run_jobs

    device = torch.device("cuda")
    command = f"python -m bench.gpu --suite-seconds {limit_seconds:g}"
    path = files.place(None, folder / default_path(device).name, files.is_results)
    wanted = jobs(gpu_entries(), device)
    return run_jobs(wanted, command, path, limit_seconds=limit_seconds).failures


def _is_own(content: Any) -> bool:
    """Whether it is the content of an earlier file of this command; the suite's have runs."""
    return isinstance(content, dict) and "machine" in content and "runs" not in content


def _default_out() -> Path:
    if "OUT" in os.environ:
        return Path(os.environ["OUT"]) / "gpu.json"
    return Path(__file__).parent / "results" / f"gpu-{datetime.date.today().isoformat()}.json"


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.gpu")
    parser.add_argument(
        "--out", type=Path, help=f"JSON file (default: {_default_out()}); {files.EXISTING}"
    )
    parser.add_argument("--skip-tests", action="store_true")
    parser.add_argument("--tokens", type=int, default=8192)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--vocab", type=int, default=151936)
    parser.add_argument(
        "--suite-seconds",
        type=seconds_or_none,
        default=120.0,
        help="no run of the benchmark suite is begun after this time; 0: none",
    )
    options = parser.parse_args(arguments)
    reason = cannot_run()
    if reason is not None:
        print(reason, file=sys.stderr)
        return 2
    try:
        out = files.place(options.out, _default_out(), _is_own)
    except ValueError as error:
        parser.error(str(error))
    # Not at the top: without Triton the message above is what should be seen.
    from .gpu_shape_a import benchmark

    result: dict[str, Any] = {"machine": machine()}

    def keep() -> None:
        """After every part: one that hangs or takes the process down loses nothing before it."""
        files.write(out, result)

    if not options.skip_tests:
        result["tests"] = run_tests()
        keep()
    result["benchmark"] = benchmark(options.tokens, options.hidden, options.vocab)
    keep()
    if options.suite_seconds > 0:
        torch.cuda.empty_cache()
        result["suite"] = _suite(options.suite_seconds, out.parent)
        keep()
    if not options.skip_tests:
        result["sanitizer"] = run_sanitizer()
        keep()
    print("\n" + table(result) + f"\nwritten to {out}")
    return 1 if failed(result) else 0


if __name__ == "__main__":
    sys.exit(main())
