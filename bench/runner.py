"""One run: a setting, its peers, all in this process on the same tensors.

Each peer is compared with the float64 answer before it is timed. One that is wrong is reported as
wrong, with its errors, and not timed; one that cannot run is reported with the reason. The others
are timed in turns with the floor, so that a slower minute of the machine hits all of them, and
ratios are taken within the run.
"""

from __future__ import annotations

import itertools
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sdkernels.engine.chunks import default_chunk_bytes

from .check import Bounds, WrongResult, bounds_of, errors_of
from .floor import DeviceCopy, Floor
from .machine import OtherLoad, clocks
from .measure import available_bytes, back_memory, cache_bytes, peak_extra_bytes, seconds, spread
from .peer import Peer, one_line
from .problem import Answer, Problem, Setting, float64_answer

# The float64 answer of more tokens than this takes longer than everything else.
CHECK_TOKENS = {"cpu": 2048, "cuda": 8192}
LEAST_REPEATS = 3


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        repeats: timed calls of each, as far as `seconds` allow; at least 3.
        seconds: for the timed part of one run.
    """

    repeats: int = 20
    seconds: float = 60.0


def run(setting: Setting, peers: Sequence[Peer], effort: Effort) -> dict[str, Any]:
    """Check, measure and time; what comes back goes into the results file as it is."""
    # Compiled peers of earlier runs count towards dynamo's limit of recompilations, beyond which it
    # would run them uncompiled, with no more than a warning.
    torch.compiler.reset()
    started, load = time.perf_counter(), OtherLoad()
    problem, checked = _inputs(setting)
    answer = float64_answer(checked)
    bounds = bounds_of(checked, answer)
    rows, before = [], checked.fingerprint()
    for peer in peers:
        rows.append(checked_row(peer, checked, answer, bounds, setting))
        if checked.fingerprint() != before:
            errors = {"value_error": None, "gradient_error": None}
            rows[-1] = errors | rows[-1] | {"status": "wrong", "reason": "it changes its inputs"}
            # As they were, for those who come after.
            problem, checked = _inputs(setting)
    del answer
    by_name = {peer.name: peer for peer in peers}
    running = [(row, by_name[row["peer"]]) for row in rows if row["status"] == "ok"]
    for row, peer in running:
        if checked is not problem:
            # What compiles for a new size does so now: its memory is not the call's.
            _guarded(row, partial(call, peer, problem))
        if row["status"] == "ok":
            _measure_peak(row, problem, partial(call, peer, problem))
    running = [(row, peer) for row, peer in running if row["status"] == "ok"]
    clocks_before = clocks(setting.device)
    floor = _time_all(problem, running, effort)
    return {
        "case": setting.case.name,
        "title": setting.case.title,
        "shape": {
            "name": setting.shape.name,
            "tokens": setting.tokens,
            "hidden": setting.shape.hidden,
            "vocab": setting.shape.vocab,
        },
        "dtype": str(setting.dtype).removeprefix("torch."),
        "device": setting.device.type,
        "head": "frozen" if setting.frozen else "trainable",
        "teacher": _teacher(setting),
        "flops": setting.flops,
        "budget_bytes": default_chunk_bytes(setting.device),
        "checked_tokens": checked.setting.tokens,
        "bounds": asdict(bounds),
        "clocks": {"before": clocks_before, "after": clocks(setting.device)},
        "seconds": time.perf_counter() - started,
        "others_cpu_share": load.share(),
        "floor": floor,
        "rows": rows,
    }


def _inputs(setting: Setting) -> tuple[Problem, Problem]:
    """What is timed, and the part of it that is compared with float64: the same if it is short."""
    problem = Problem.make(setting)
    return problem, problem.first(CHECK_TOKENS[setting.device.type])


def _teacher(setting: Setting) -> str:
    if not setting.case.teacher:
        return "none"
    return "own" if setting.own_teacher else "external"


def call(peer: Peer, problem: Problem) -> Tensor | tuple[Tensor, Tensor]:
    """One call with everything that belongs to it: forward, and backward if the case has one.

    Raises:
        WrongResult: the loss is no single number.
    """
    function = peer.calls[problem.setting.case.name]
    if not problem.setting.case.backward:
        with torch.no_grad():
            return function(problem)
    loss = function(problem)
    if not isinstance(loss, Tensor) or loss.ndim:
        kind = list(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
        raise WrongResult(f"result of shape {kind}, not []")
    if loss.requires_grad:
        loss.backward()
    return loss.detach()


def checked_row(
    peer: Peer, problem: Problem, answer: Answer, bounds: Bounds, setting: Setting
) -> dict[str, Any]:
    """The peer's row after the comparison: status, reason or errors. Those of a result that has
    none, since it has another shape or lacks a gradient, are None.
    """
    row: dict[str, Any] = {"peer": peer.name, "title": peer.title, "status": "ok", "reason": None}
    why = peer.why_not(setting, available_bytes(setting.device))
    if why is not None:
        return row | {"status": "not run", "reason": why}
    problem.clear()
    errors = _guarded(row, lambda: errors_of(call(peer, problem), problem, answer))
    problem.clear()
    if errors is None:
        return row
    row["value_error"], row["gradient_error"] = errors
    if not bounds.hold(*errors):
        row |= {"status": "wrong", "reason": f"beyond {bounds}"}
    return row


def _measure_peak(row: dict[str, Any], problem: Problem, run: Callable[[], Any]) -> None:
    """Call `run` and note the peak of memory beyond inputs and the gradients that stay; also the
    warm-up at this size.
    """
    problem.clear()
    extra = _guarded(row, partial(peak_extra_bytes, run, problem.setting.device))
    problem.clear()
    if row["status"] == "ok":
        row["peak_extra_bytes"] = None if extra is None else max(extra - problem.gradient_bytes, 0)


def _timed(row: dict[str, Any], run: Callable[[], Any], problem: Problem) -> float:
    """Seconds of `run`, with the memory that it takes in place."""
    device = problem.setting.device
    back_memory((row["peak_extra_bytes"] or 0) + problem.gradient_bytes, device)
    return seconds(run, device)


def _guarded(row: dict[str, Any], step: Callable[[], Any]) -> Any:
    """Result of `step`; an error of the peer becomes its row's reason, and None comes back."""
    try:
        return step()
    except WrongResult as error:
        row |= {"status": "wrong", "reason": str(error)}
        row.setdefault("value_error", None)
        row.setdefault("gradient_error", None)
        return None
    except Exception as error:
        row["status"] = "not run"
        row["reason"] = _reason(error)
        return None


def _reason(error: Exception) -> str:
    if isinstance(error, torch.OutOfMemoryError):
        return "out of memory"
    if isinstance(error, ImportError):
        return f"cannot be imported: {one_line(error)}"
    return f"{type(error).__name__}: {one_line(error)}"


def _time_all(
    problem: Problem,
    running: list[tuple[dict[str, Any], Peer]],
    effort: Effort,
) -> dict[str, Any]:
    """Time the floor, the device copy and every peer in turns; fill the rows, return the floor."""
    setting = problem.setting
    problems = problem.copies(cache_bytes(setting.device))
    floor, copy = Floor(problem), DeviceCopy(setting.device)
    floor(problem)
    copy()
    times: dict[str, list[float]] = {"floor": [], "copy": []}
    started = time.perf_counter()
    inputs, shuffler = itertools.cycle(problems), random.Random(0)
    for repeat in range(effort.repeats):
        round_started = time.perf_counter()
        times["copy"].append(seconds(copy, setting.device))
        # None is the floor. In another order each round, so that nobody always comes after the
        # same one and finds the caches and the memory that it leaves.
        turns: list[tuple[dict[str, Any], Peer] | None] = [None, *running]
        shuffler.shuffle(turns)
        for turn in turns:
            own = next(inputs)
            if turn is None:
                times["floor"].append(seconds(partial(floor, own), setting.device))
                continue
            row, peer = turn
            took = _guarded(row, partial(_timed, row, partial(call, peer, own), own))
            own.clear()
            if took is None:
                running.remove(turn)
            else:
                times.setdefault(peer.name, []).append(took)
        now = time.perf_counter()
        over = now - started + (now - round_started) > effort.seconds
        if over and repeat + 1 >= LEAST_REPEATS:
            break
    floor_seconds = spread(times["floor"])
    for row, peer in running:
        row["seconds"] = spread(times[peer.name])
        row["ratio_to_floor"] = row["seconds"]["median"] / floor_seconds["median"]
        row["flops_per_second"] = setting.flops / row["seconds"]["median"]
    return {
        "products": setting.products,
        "chunk_tokens": floor.chunk_tokens,
        "seconds": floor_seconds,
        "flops_per_second": setting.flops / floor_seconds["median"],
        "copy_bytes_per_second": copy.moved_bytes / spread(times["copy"])["median"],
        "input_copies": len(problems),
    }
