"""Shape A on a GPU: times against the bare matrix products, and peak memory, of every kind of call.

Times are medians of CUDA events around one call, after warm-up; the floor is the bare products of
the same work, timed in turn with the calls.
"""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

import sdkernels as sd
from sdkernels.engine.plan import plan_loss
from sdkernels.kernels.launch import Logits
from sdkernels.kernels.statistics import partial_statistics

from .floor import Products, fastest

REPETITIONS = 7
SOFTCAP = 30.0


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

    # The same in float16, whose gradients of logits are scaled, and under Gemma's softcap.
    h16, w16 = (x.detach().half().requires_grad_() for x in (h, w))
    teacher16 = sd.HiddenTeacher(ht.half(), wt.half())
    capped = sd.HiddenTeacher(ht, sd.LMHead(wt, softcap=SOFTCAP))

    def loss(name: str, who: sd.HiddenTeacher, **more: Any) -> Callable[[], None]:
        return partial(_step, h, w, lambda s, tok: s[name], teacher=who, **more)

    @torch.no_grad()
    def slab_statistics() -> None:
        sd.token_stats(h, w, targets=ids, backend="triton")

    @torch.no_grad()
    def fused_statistics() -> None:
        sd.token_stats(h, w, targets=ids, slab_free=True, backend="triton")

    @torch.no_grad()
    def fused_entropy() -> None:
        sd.token_stats(h, w, slab_free=True, backend="triton")

    products = Products(h.detach(), w.detach(), backward=True, trainable_head=True)

    floor_chunks: dict[str, int] = {}

    def floor(name: str, *, teacher: bool, backward: bool) -> dict[str, Callable[[], object]]:
        """The products of the calls below it, in the chunks that are the fastest."""
        who = (ht, wt) if teacher else None

        def run(chunk: int) -> None:
            products(chunk, h, w, who, backward=backward)

        floor_chunks[name] = fastest(products.chunks, run, h.device)
        return {name: partial(run, floor_chunks[name])}

    runs: dict[str, Callable[[], object]] = {
        **floor("floor 8TDV", teacher=True, backward=True),
        "kl_teacher_student": loss("kl_teacher_student", teacher),
        # The default budget is 2.5 % of the device; the target of the design is 2 GiB.
        "kl_teacher_student, within 2 GiB": loss(
            "kl_teacher_student", teacher, chunk_bytes=2 << 30
        ),
        "kl_teacher_student, shared head": loss("kl_teacher_student", shared),
        "kl_teacher_student, float16": partial(
            _step, h16, w16, lambda s, tok: s.kl_teacher_student, teacher=teacher16
        ),
        "kl_teacher_student, softcap": loss("kl_teacher_student", capped, softcap=SOFTCAP),
        "kl_student_teacher": loss("kl_student_teacher", teacher),
        "jsd": loss("jsd", teacher, jsd_beta=0.5),
        **floor("floor 6TDV", teacher=False, backward=True),
        "logp + entropy": partial(
            _step, h, w, lambda s, tok: s.logp + 0.1 * s.entropy, targets=ids
        ),
        **floor("floor 2TDV", teacher=False, backward=False),
        "logp + entropy, forward, slab": slab_statistics,
        "logp + entropy, forward, fused": fused_statistics,
        "entropy, forward, fused": fused_entropy,
    }
    times = milliseconds(runs)
    peaks = {name: peak_bytes(run) for name, run in runs.items() if not name.startswith("floor")}
    for leaf in (h, w, h16, w16):
        leaf.grad = None
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
        "chunk_tokens": floor_chunks,
        "row kernels": _row_kernels(products.slab_CV[:2048]),
        "plan of kl_teacher_student": _plan(tokens, hidden, vocab),
    }


def _step(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    loss_fn: Callable[[Any, Any], torch.Tensor],
    *,
    softcap: float | None = None,
    **settings: Any,
) -> None:
    """A loss forward and backward."""
    hidden.grad = weight.grad = None
    head = sd.LMHead(weight, softcap=softcap)
    loss, _ = sd.token_loss(hidden, head, loss_fn, backend="triton", **settings)
    loss.backward()


def _row_kernels(slab: torch.Tensor) -> dict[str, Any]:
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


def _plan(tokens: int, hidden: int, vocab: int) -> dict[str, Any]:
    """The paper count, to hold the times against."""
    memory = torch.cuda.get_device_properties(0).total_memory
    plan = plan_loss(tokens, hidden, vocab, device_memory_bytes=memory)
    found = dataclasses.asdict(plan)
    return {**found, "launches": plan.launches, "moved_bytes": plan.moved_bytes}
