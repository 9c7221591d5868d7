"""The runs that `make bench` and `make gpu` make, most wanted first, within a time limit."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from . import cases, peers, shapes
from .cases import CASES
from .machine import machine
from .problem import Setting
from .results import assemble
from .runner import Effort, run
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


def run_suite(
    entries: Sequence[Entry],
    device: torch.device,
    command: str,
    *,
    limit_seconds: float | None = None,
    say: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Run the entries in order; what does not fit into the limit is listed under `left_out`.

    An entry is begun while there is time for its timed part, so the limit is passed by what checks
    and compilation of the last one take.
    """
    say = say or _to_stderr
    started = time.perf_counter()
    runs, left_out = [], []
    for entry in entries:
        setting = entry.setting(device)
        spent = time.perf_counter() - started
        if limit_seconds is not None and spent + entry.seconds > limit_seconds:
            left_out.append(
                {
                    "case": entry.case,
                    "shape": entry.shape,
                    "tokens": entry.tokens,
                    "reason": f"{limit_seconds:.0f} s were given, {spent:.0f} s were spent",
                }
            )
            continue
        chosen = peers.select(None if entry.peers is None else list(entry.peers), entry.case)
        found = run(setting, chosen, Effort(seconds=entry.seconds))
        runs.append(found)
        say(f"[{time.perf_counter() - started:4.0f} s] {heading(found)}")
    return assemble(command, machine(device), runs, left_out)


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
