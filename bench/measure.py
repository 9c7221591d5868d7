"""Timing and peak memory of a callable on CPU."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from pathlib import Path


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def peak_extra_bytes(run: Callable[[], object]) -> int | None:
    """Highest resident memory during `run` beyond that before it; None where the system cannot
    tell.

    Linux resets the peak when 5 is written to `clear_refs`. Blocks above 32 MiB go back to the
    system when freed, so what earlier runs freed does not hide a later peak.
    """
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    try:
        clear.write_text("5")
    except OSError:
        return None
    before = _field(status, "VmRSS")
    run()
    return _field(status, "VmHWM") - before


def spread(times: list[float]) -> dict[str, float]:
    """Median, minimum and maximum, in seconds."""
    return {"median": statistics.median(times), "min": min(times), "max": max(times)}


def _field(status: Path, name: str) -> int:
    for line in status.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{status} has no {name}")
