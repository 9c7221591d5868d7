"""Timing and peak memory of a call, on CPU by the clock and on a GPU by its own events."""

from __future__ import annotations

import ctypes
import mmap
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from sdkernels.rows.pages import ADVICE

# Larger than the L3 slice of one socket part where the system does not tell its caches.
UNKNOWN_CACHE_BYTES = 64 << 20
# From glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def seconds(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call: between two events on a GPU, by the wall clock elsewhere."""
    if device.type != "cuda":
        start = time.perf_counter()
        run()
        return time.perf_counter() - start
    before = torch.cuda.Event(enable_timing=True)
    after = torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize(device)
    before.record()
    run()
    after.record()
    after.synchronize()
    return before.elapsed_time(after) / 1e3


def spread(times: list[float]) -> dict[str, Any]:
    """Median, quartiles, extremes in seconds, and how many there were."""
    if len(times) == 1:
        low = high = times[0]
    else:
        low, _, high = statistics.quantiles(times, n=4, method="inclusive")
    return {
        "median": statistics.median(times),
        "quartile_low": low,
        "quartile_high": high,
        "min": min(times),
        "max": max(times),
        "repeats": len(times),
    }


def peak_extra_bytes(run: Callable[[], object], device: torch.device) -> int | None:
    """Most memory during `run` beyond that before it; None where the system cannot tell.

    On a GPU what the allocator handed out. On Linux resident memory: writing 5 to `clear_refs`
    resets its peak, and memory that earlier calls freed goes back to the system first, so that it
    does not hide a later peak. During the call every larger block comes from the system and goes
    back to it (`_blocks_of_their_own`), so that the figure is what was asked for.
    """
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        used = torch.cuda.memory_allocated(device)
        run()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) - used
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    if not status.exists():
        return None
    _give_back_freed_memory()
    try:
        clear.write_text("5")
    except OSError:
        return None
    before = _field(status, "VmRSS")
    with _blocks_of_their_own():
        run()
    return _field(status, "VmHWM") - before


def back_memory(size: int, device: torch.device) -> None:
    """Take so many bytes of the CPU's memory, touch them, and give them back.

    A virtual machine's host may take free memory away within seconds and bring it back page by
    page, at 1 to 4 s a GB of huge pages where it was seen (docs/decisions.md). Without this a call
    pays for that or not, by what the one before it happened to free. Small pages cost the same
    either way.
    """
    if device.type != "cpu" or size <= 0:
        return
    # Not from malloc, which takes it from a gap in its heap where there is one, and keeps it.
    with mmap.mmap(-1, size) as block:
        if ADVICE is not None:
            with suppress(OSError):  # of a kernel without huge pages
                block.madvise(ADVICE)
        block[:: mmap.PAGESIZE] = b"1" * -(-size // mmap.PAGESIZE)


def available_bytes(device: torch.device) -> int | None:
    """Memory that a call may still take; None where the system does not say."""
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        # Blocks that the allocator keeps are free for the next call.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + kept)
    meminfo = Path("/proc/meminfo")
    return _field(meminfo, "MemAvailable") if meminfo.exists() else None


def cache_bytes(device: torch.device) -> int:
    """Size of the last cache before memory."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).L2_cache_size)
    units = {"K": 1 << 10, "M": 1 << 20}
    sizes = [
        int(text[:-1]) * units[text[-1]]
        for path in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size")
        if (text := path.read_text().strip())[-1] in units
    ]
    return max(sizes, default=UNKNOWN_CACHE_BYTES)


def _give_back_freed_memory() -> None:
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)  # elsewhere freed blocks stay, and the figure is a lower bound


@contextmanager
def _blocks_of_their_own() -> Iterator[None]:
    """Where glibc allocates, blocks of 64 KiB and more have a mapping each.

    glibc raises the size from which they have, up to 32 MiB, as such blocks are freed. Smaller ones
    then lie in heaps that fragment and keep what is freed: peers showed up to twice of what they
    allocate, and another figure in each process. Afterwards both thresholds are at what they would
    have risen to; for a timed call a mapping for each block would cost page faults.
    """
    libc = _glibc()
    if libc is None:
        yield
        return
    libc.mallopt(_M_MMAP_THRESHOLD, 64 << 10)
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)
        libc.mallopt(_M_TRIM_THRESHOLD, 64 << 20)


def _glibc() -> ctypes.CDLL | None:
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018
    except (AttributeError, OSError, TypeError):
        return None
    return libc


def _field(status: Path, name: str) -> int:
    for line in status.read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"{status} has no {name}")
