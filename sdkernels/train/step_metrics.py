"""Numbers of a step: sums that merge over micro-batches and ranks, timers, and peak memory."""

from __future__ import annotations

import contextlib
import math
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

MEANS = (
    "gap",
    "gap_abs",
    "kl_teacher_student",
    "entropy",
    "teacher_entropy",
    "direction",
    "push_share",
    "signal_share",
    "reward",
    "accuracy",
    "completion_length",
    "truncated_share",
)
SUMS = ("num_tokens", "marker_count", "rollout_tokens")
SECTIONS = (
    "rollout",
    "context",
    "student_forward",
    "teacher_forward",
    "loss",
    "backward",
    "optimizer",
)
STATUS_FILE = Path("/proc/self/status")


class StepMetrics:
    """Means and sums since the last `take`. A mean without entries is None, never 0."""

    def __init__(self) -> None:
        self._total: dict[str, Tensor | float] = defaultdict(float)
        self._count: dict[str, Tensor | float] = defaultdict(float)

    def add(self, name: str, total: Tensor | float, count: Tensor | float = 1) -> None:
        """Add `total` over `count` entries; tensors are kept on their device, so nothing waits."""
        self._total[name] = self._total[name] + total
        self._count[name] = self._count[name] + count

    def take(self, accelerator: Any) -> dict[str, float | None]:
        """Values over all ranks, and start anew. Every rank has to call it."""
        names = (*MEANS, *SUMS)
        table = [[float(self._total[name]), float(self._count[name])] for name in names]
        merged = torch.tensor(table, dtype=torch.float64)
        if accelerator.num_processes > 1:
            # Not every device has float64; counts stay exact in float32 up to 2^24, sums are for
            # reading.
            merged = (
                accelerator.reduce(merged.float().to(accelerator.device), reduction="sum")
                .double()
                .cpu()
            )
        self._total.clear()
        self._count.clear()
        values: dict[str, float | None] = {}
        for name, (total, count) in zip(names, merged.tolist(), strict=True):
            if name in SUMS:
                values[name] = total
            else:
                values[name] = total / count if count and math.isfinite(total) else None
        return values


class Timers:
    """Seconds per section of a step; on CUDA by events, so that timing does not stop the queue."""

    def __init__(self, device: torch.device) -> None:
        self._cuda = device.type == "cuda"
        self._seconds: dict[str, float] = defaultdict(float)
        self._events: list[tuple[str, Any, Any]] = []
        self._open: dict[str, Any] = {}

    def start(self, name: str) -> None:
        """Start the clock of a section."""
        self._open[name] = self._now()

    def stop(self, name: str) -> None:
        """Stop it; a section that was not started is left alone."""
        begun = self._open.pop(name, None)
        if begun is None:
            return
        if self._cuda:
            self._events.append((name, begun, self._now()))
        else:
            self._seconds[name] += time.perf_counter() - begun

    @contextlib.contextmanager
    def section(self, name: str) -> Iterator[None]:
        """Time a block."""
        self.start(name)
        try:
            yield
        finally:
            self.stop(name)

    def take(self) -> dict[str, float | None]:
        """Seconds by section since the last call; None for a section that did not run."""
        for name, begun, ended in self._events:
            ended.synchronize()
            self._seconds[name] += begun.elapsed_time(ended) / 1000
        taken = {name: self._seconds.get(name) for name in SECTIONS}
        self._seconds.clear()
        self._events.clear()
        return taken

    def _now(self) -> Any:
        if not self._cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def peak_memory_bytes() -> int:
    """Most memory in use since the last reset: of the CUDA device, else of this process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    if STATUS_FILE.exists():
        for line in STATUS_FILE.read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def reset_peak_memory() -> None:
    """Start the peak anew where the system can (CUDA, Linux); elsewhere it stays that of the
    process.
    """
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
        return
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
