"""The runs that `make bench` and `make gpu` make, most wanted first, within a time limit."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from . import cases, peers, shapes
from .cases import CASES
from .measure import available_bytes
from .peer import Peer, one_line
from .problem import Setting
from .record import Record
from .runner import CHECK_TOKENS, Effort, run
from .tables import heading

KL = "kl-teacher-student"
# Peers whose memory does not grow with T, for the runs over T up to 128k.
CHUNKED = [
    "sdkernels",
    "compiled-chunks",
    "liger-chunked-4096-compiled",
    "liger-jsd",
    "trl-divergence",
]
SWEEP_TOKENS = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)


@dataclass(frozen=True)
class Entry:
    """One run of a suite.

    Attributes:
        seconds: for its timed part; checking, compiling and warming up come on top.
        peers: None: all that have the case.
    """

    case: str
    shape: str
    tokens: int
    seconds: float
    frozen: bool = False
    own_teacher: bool = False
    peers: tuple[str, ...] | None = None

    def setting(self, device: torch.device) -> Setting:
        """What it measures on `device`: bfloat16 on GPUs, float32 on CPU."""
        return Setting(
            case=cases.get(self.case),
            shape=shapes.get(self.shape),
            tokens=self.tokens,
            frozen=self.frozen,
            own_teacher=self.own_teacher,
            dtype=torch.bfloat16 if device.type == "cuda" else torch.float32,
            device=device,
        )


def cpu_entries() -> list[Entry]:
    """Every case at a small shape, then SmolLM2's head at three T: the small ones take two minutes
    together, so that a limit of minutes leaves out no case.
    """
    found = [Entry(case, "small", 1024, seconds=6) for case in CASES]
    found += [
        Entry(KL, "small", 1024, seconds=6, frozen=True),
        Entry(KL, "small", 1024, seconds=6, own_teacher=True),
        Entry(KL, "smollm2", 2048, seconds=60),
    ]
    return [*found, Entry(KL, "smollm2", 512, seconds=20), Entry(KL, "smollm2", 1024, seconds=20)]


def gpu_entries() -> list[Entry]:
    """Every case at Qwen3-8B with 8192 tokens, KL at every shape, and over T up to 128k."""
    found = [Entry(KL, "qwen3-8b", 8192, seconds=20)]
    found += [Entry(case, "qwen3-8b", 8192, seconds=10) for case in CASES if case != KL]
    found += [
        Entry(KL, "qwen3-8b", 8192, seconds=5, frozen=True),
        Entry(KL, "qwen3-8b", 8192, seconds=5, own_teacher=True),
    ]
    sweep = [tokens for tokens in SWEEP_TOKENS if tokens != 8192]
    found += [Entry(KL, "qwen3-8b", tokens, 8, peers=tuple(CHUNKED)) for tokens in sweep]
    others = ("qwen3-0.6b", "qwen3-1.7b", "llama-3-8b", "gemma-3-1b", "smollm2")
    return found + [Entry(KL, shape, 8192, seconds=5, peers=tuple(CHUNKED)) for shape in others]


@dataclass(frozen=True)
class Job:
    """A run to be made."""

    setting: Setting
    peers: Sequence[Peer]
    effort: Effort


def jobs(entries: Sequence[Entry], device: torch.device) -> list[Job]:
    """What the entries are on `device`."""
    return [
        Job(
            entry.setting(device),
            peers.select(None if entry.peers is None else list(entry.peers), entry.case),
            Effort(seconds=entry.seconds),
        )
        for entry in entries
    ]


def run_jobs(
    wanted: Sequence[Job],
    command: str,
    path: Path | None = None,
    *,
    limit_seconds: float | None = None,
    say: Callable[[str], None] | None = None,
) -> Record:
    """Run the jobs in order, keep each run at `path`, and print the tables, also where Ctrl-C ends
    it; what fails outside a peer, or does not fit into memory or the limit, is listed under
    `left_out`.

    A run is begun while there is time for its timed part, so the limit is passed by what checks and
    compilation of the last one take.

    Raises:
        ValueError: nothing can be written at `path`.
    """
    say = say or _to_stderr
    started = time.perf_counter()
    settings = [job.setting for job in wanted]
    record = Record(command, settings[0].device, settings, path)
    with record.shown():
        for job in wanted:
            spent = time.perf_counter() - started
            if limit_seconds is not None and spent + job.effort.seconds > limit_seconds:
                record.leave_out(f"{limit_seconds:.0f} s were given, {spent:.0f} s were spent")
                continue
            found = _run_or_reason(job, record)
            if found is not None:
                record.add(found)
                say(f"[{time.perf_counter() - started:4.0f} s] {heading(found)}")
    return record


def _run_or_reason(job: Job, record: Record) -> dict[str, Any] | None:
    """The run; None: it was left out, and `record` has the reason."""
    _give_back_memory(job.setting.device)
    try:
        reason = too_large(job.setting)
        if reason is None:
            return run(job.setting, job.peers, job.effort)
    except Exception as error:
        # Its traceback holds the tensors of the run: no more than its words outlive this block.
        failure = ": ".join(filter(None, (type(error).__name__, one_line(error))))
    else:
        record.leave_out(reason)
        return None
    record.fail(failure)
    return None


def _give_back_memory(device: torch.device) -> None:
    """To the GPU, whose free memory does not count what the allocator keeps of runs before."""
    if device.type == "cuda":
        gc.collect()
        with suppress(RuntimeError):  # after some errors every call raises; so does the run then
            torch.cuda.empty_cache()


def too_large(setting: Setting) -> str | None:
    """Why inputs, gradients and the float64 answer do not fit into memory; None: they may.

    On CPU the system would end the process, or another one. It is a lower bound: what peers need
    comes on top.
    """
    free = available_bytes(setting.device)
    if free is None:
        return None
    case, hidden = setting.case, setting.shape.hidden
    head, states = setting.shape.vocab * hidden, setting.tokens * hidden
    checked = min(setting.tokens, CHECK_TOKENS[setting.device.type]) * hidden
    models = 2 if case.teacher and not setting.own_teacher else 1
    inputs = models * head + (2 if case.teacher else 1) * states
    # A call leaves gradients in the inputs' dtype.
    gradients = (states + (0 if setting.frozen else head)) if case.backward else 0
    # In float64: every head, the gradient of the checked hidden states, and that of the student's
    # head, twice while a part is added to it.
    doubles = models * head
    if case.backward:
        doubles += checked + (0 if setting.frozen else 2 * head)
    needed = setting.dtype.itemsize * inputs
    needed += max(8 * doubles, setting.dtype.itemsize * gradients)
    if needed <= free:
        return None
    return f"needs about {needed / 2**30:.0f} GiB, {free / 2**30:.0f} GiB are free"


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
