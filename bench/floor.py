"""The floor: the bare matrix products of the same work into memory that exists, and a device copy.

It is the fastest of a few loops over chunks: what computes the loss does these products too,
whatever it fuses. The copy says what the machine's memory does, for judging what is left above it.

Shape letters: T tokens, D hidden, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from sdkernels.rows.pages import large_empty

from .measure import available_bytes, seconds
from .problem import Problem

# Which length is the fastest depends on the machine: a longer chunk makes better products and
# leaves the cache.
CHUNK_TOKENS = {"cpu": (512, 1024, 2048), "cuda": (2048, 4096, 8192)}
# For choosing among them: so many turns at least, and more within this time.
TURNS, CHOICE_SECONDS = 2, 1.0
COPY_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}


class Products:
    """Matrix products of T x D x V, chunk by chunk, into buffers for the longest chunk; logits and
    the head's gradient in float32, as exact implementations have them.
    """

    def __init__(
        self, hidden_TD: Tensor, weight_VD: Tensor, *, backward: bool, trainable_head: bool
    ) -> None:
        device, dtype, vocab = hidden_TD.device, hidden_TD.dtype, weight_VD.shape[0]
        row_bytes = vocab * (4 + (dtype.itemsize if backward else 0))
        self.chunks = _lengths(hidden_TD.shape[0], row_bytes, device)
        # In huge pages, like those of sdkernels: products into them are faster.
        shape = (self.chunks[-1], vocab)
        self.slab_CV = large_empty(shape, dtype=torch.float32, device=device)
        self.dz_CV: Tensor | None = None
        self.dh_TD: Tensor | None = None
        self.dw_VD: Tensor | None = None
        if backward:
            self.dz_CV = large_empty(shape, dtype=dtype, device=device).normal_()
            self.dh_TD = torch.empty_like(hidden_TD, requires_grad=False)
            if trainable_head:
                head = tuple(weight_VD.shape)
                self.dw_VD = large_empty(head, dtype=torch.float32, device=device)

    @torch.no_grad()
    def __call__(
        self,
        chunk_tokens: int,
        hidden_TD: Tensor,
        weight_VD: Tensor,
        teacher: tuple[Tensor, Tensor] | None = None,
        *,
        backward: bool = True,
    ) -> None:
        """Once, `chunk_tokens` at a time; `teacher`: its hidden states and head. `backward=False`
        leaves out the products of gradients.
        """
        for lo in range(0, hidden_TD.shape[0], chunk_tokens):
            rows = slice(lo, lo + chunk_tokens)
            hidden_CD = hidden_TD[rows]
            slab_CV = self.slab_CV[: hidden_CD.shape[0]]
            _mm(hidden_CD, weight_VD.t(), slab_CV)
            if teacher is not None:
                _mm(teacher[0][rows], teacher[1].t(), slab_CV)
            if not backward or self.dz_CV is None or self.dh_TD is None:
                continue
            dz_CV = self.dz_CV[: hidden_CD.shape[0]]
            torch.mm(dz_CV, weight_VD, out=self.dh_TD[rows])
            if self.dw_VD is not None:
                _add_mm(dz_CV.t(), hidden_CD, self.dw_VD, first=lo == 0)


class Floor:
    """The products of a case, with the chunks that are the fastest here: `chunk_tokens`."""

    def __init__(self, problem: Problem) -> None:
        setting = problem.setting
        self.products = Products(
            problem.hidden_TD.detach(),
            problem.weight_VD,
            backward=setting.case.backward,
            trainable_head=not setting.frozen,
        )
        self.chunk_tokens = fastest(
            self.products.chunks,
            partial(self._run, problem),
            problem.hidden_TD.device,
        )

    def __call__(self, problem: Problem) -> None:
        """Run them once on the inputs of `problem` (a copy of the one it was made for)."""
        self._run(problem, self.chunk_tokens)

    def _run(self, problem: Problem, chunk_tokens: int) -> None:
        teacher = None
        if problem.teacher_hidden_TD is not None:
            assert problem.teacher_weight_VD is not None
            teacher = (problem.teacher_hidden_TD, problem.teacher_weight_VD)
        self.products(chunk_tokens, problem.hidden_TD, problem.weight_VD, teacher)


def fastest(lengths: Sequence[int], run: Callable[[int], None], device: torch.device) -> int:
    """The length with the shortest call, taken in turns after one call of each that warms up."""
    if len(lengths) == 1:
        return lengths[0]
    for length in lengths:
        run(length)
    taken = dict.fromkeys(lengths, float("inf"))
    started, turns = time.perf_counter(), 0
    while turns < TURNS or time.perf_counter() - started < CHOICE_SECONDS:
        for length in lengths:
            taken[length] = min(taken[length], seconds(partial(run, length), device))
        turns += 1
    return min(taken, key=lambda length: taken[length])


def _lengths(tokens: int, row_bytes: int, device: torch.device) -> list[int]:
    """Lengths of chunks to choose from, shortest first: those whose buffers take at most a quarter
    of the memory that is free, and always the shortest.
    """
    lengths = sorted({min(length, tokens) for length in CHUNK_TOKENS[device.type]})
    free = available_bytes(device)
    return [
        length
        for length in lengths
        if length == lengths[0] or free is None or 4 * length * row_bytes <= free
    ]


def _mm(a: Tensor, b: Tensor, out: Tensor) -> None:
    if a.dtype == out.dtype:
        torch.mm(a, b, out=out)
    elif a.device.type == "cuda":
        torch.mm(a, b, out_dtype=out.dtype, out=out)
    else:
        out.copy_(torch.mm(a, b))  # the CPU has no product with a wider result


def _add_mm(a: Tensor, b: Tensor, out: Tensor, *, first: bool) -> None:
    if first:
        _mm(a, b, out)
    elif a.dtype == out.dtype:
        torch.addmm(out, a, b, out=out)
    elif a.device.type == "cuda":
        torch.addmm(out, a, b, out_dtype=out.dtype, out=out)
    else:
        out.add_(torch.mm(a, b))


class DeviceCopy:
    """A copy of memory far larger than any cache."""

    def __init__(self, device: torch.device) -> None:
        count = COPY_BYTES[device.type]
        self.source = torch.ones(count, dtype=torch.uint8, device=device)
        self.target = torch.empty_like(self.source)

    @property
    def moved_bytes(self) -> int:
        """Bytes that are read and written."""
        return 2 * self.source.nbytes

    def __call__(self) -> None:
        """Copy once."""
        self.target.copy_(self.source)
