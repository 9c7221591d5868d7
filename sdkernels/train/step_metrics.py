"""Numbers of a step: sums that merge over micro-batches and ranks, timers, and peak memory."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdkernels.train.token_kinds import KINDS

# What `metrics.jsonl` holds besides the trainer's own numbers; docs/analysis.md says what each is.
MEANS = (
    "gap",
    "gap_abs",
    "gap_correct",
    "gap_wrong",
    "gap_negative_share",
    "gap_negative_share_correct",
    "gap_negative_share_wrong",
    "kl_teacher_student",
    "entropy",
    "entropy_top20",
    "teacher_entropy",
    "teacher_entropy_top20",
    "short_response_share",
    "direction",
    "push_share",
    *(f"{kind}_share" for kind in KINDS),
    *(f"kl_{kind}" for kind in KINDS),
    *(f"gap_abs_{kind}" for kind in KINDS),
    "signal_share",
    "reward",
    "accuracy",
    "completion_length",
    "completion_length_correct",
    "completion_length_wrong",
    "truncated_share",
    "single_token_share",
    "failed_group_share",
    "solved_group_share",
    "lone_success_share",
    "same_output_share",
    "distinct_answers",
    "markers_per_response",
    "markers_per_1k",
    "markers_per_1k_correct",
    "markers_per_1k_wrong",
    "markers_per_word",
    "markers_published_per_response",
    "markers_published_per_1k",
    "markers_published_per_word",
    "policy_drift",
    "clip_low_share",
    "clip_high_share",
    "is_clip_share",
    "sampler_gap_abs",
    "padding_share",
    "padding_share_if_padded",
)
SUMS = ("num_tokens", "marker_count")
DECILES = 10
LISTS = ("entropy_by_entropy_decile", "gap_by_entropy_decile", "direction_by_entropy_decile")
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
    """Means and sums since the last `take`. A mean without entries is None, never 0; one that is
    not finite stays so.
    """

    def __init__(self) -> None:
        self._total: dict[str, Tensor | float] = defaultdict(float)
        self._count: dict[str, Tensor | float] = defaultdict(float)

    def add(self, name: str, total: Tensor | float, count: Tensor | float = 1) -> None:
        """Add `total` over `count` entries; tensors are kept on their device, so nothing waits.

        For a name of `LISTS` both are `[10]`, one entry per decile.
        """
        self._total[name] = self._total[name] + total
        self._count[name] = self._count[name] + count

    def take(self, accelerator: Any) -> dict[str, Any]:
        """Values over all ranks, and start anew. Every rank has to call it.

        A name of `LISTS` is a list of 10 with None where a decile had no entry, and None where
        none had.
        """
        entries = [(name, 0) for name in (*MEANS, *SUMS)]
        entries += [(name, at) for name in LISTS for at in range(DECILES)]
        merged = torch.tensor(self._on_host(entries), dtype=torch.float64)
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
        sums = dict(zip(entries, merged.tolist(), strict=True))
        values: dict[str, Any] = {name: _mean(*sums[name, 0]) for name in MEANS}
        values |= {name: sums[name, 0][0] for name in SUMS}
        for name in LISTS:
            means = [_mean(*sums[name, at]) for at in range(DECILES)]
            values[name] = None if all(mean is None for mean in means) else means
        return values

    def _on_host(self, entries: list[tuple[str, int]]) -> list[list[float]]:
        """Total and count of each (name, place in its list), 0 where nothing was added.

        Tensors of one dtype and device come in one copy, because every copy waits for the device.
        """
        tables = (self._total, self._count)
        numbers: dict[tuple[int, str], list[float]] = {}
        stacks: dict[Any, list[tuple[tuple[int, str], Tensor]]] = defaultdict(list)
        for side, table in enumerate(tables):
            for name, value in table.items():
                if isinstance(value, Tensor):
                    stacks[value.dtype, value.device].append(((side, name), value.reshape(-1)))
                else:
                    numbers[side, name] = [value]
        for stack in stacks.values():
            found = iter(torch.cat([value for _, value in stack]).tolist())
            numbers |= {key: list(islice(found, value.numel())) for key, value in stack}
        nothing = [0.0] * DECILES
        return [
            [numbers.get((side, name), nothing)[at] for side in range(len(tables))]
            for name, at in entries
        ]


def _mean(total: float, count: float) -> float | None:
    return total / count if count else None


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
