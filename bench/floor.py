"""The floor: the bare matrix products of the same work into memory that exists, and a device copy.

Nothing that computes the loss can be faster than the products alone, whatever it fuses. The copy
says what the machine's memory does, for judging what is left above the floor.

Shape letters: T tokens, D hidden, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdkernels.rows.pages import large_empty

from .problem import Problem

CHUNK_TOKENS = {"cpu": 512, "cuda": 4096}
COPY_BYTES = {"cpu": 128 << 20, "cuda": 1 << 30}


class Floor:
    """The products of a case, chunk by chunk; logits and the head's gradient in float32, as exact
    implementations have them.
    """

    def __init__(self, problem: Problem) -> None:
        setting, device = problem.setting, problem.hidden_TD.device
        vocab, dtype = setting.shape.vocab, setting.dtype
        self.problem = problem
        self.chunk_tokens = min(CHUNK_TOKENS[device.type], setting.tokens)
        # In huge pages, like those of sdkernels: products into them are faster.
        shape = (self.chunk_tokens, vocab)
        self.slab_CV = large_empty(shape, dtype=torch.float32, device=device)
        backward = setting.case.backward
        self.dz_CV: Tensor | None = None
        self.dh_TD: Tensor | None = None
        self.dw_VD: Tensor | None = None
        if backward:
            self.dz_CV = large_empty(shape, dtype=dtype, device=device).normal_()
            self.dh_TD = torch.empty_like(problem.hidden_TD, requires_grad=False)
            if not setting.frozen:
                head = tuple(problem.weight_VD.shape)
                self.dw_VD = large_empty(head, dtype=torch.float32, device=device)

    @torch.no_grad()
    def __call__(self, problem: Problem) -> None:
        """Run them once on the inputs of `problem` (a copy of the one it was made for)."""
        for lo in range(0, problem.setting.tokens, self.chunk_tokens):
            hidden_CD = problem.hidden_TD[lo : lo + self.chunk_tokens]
            slab_CV = self.slab_CV[: hidden_CD.shape[0]]
            _mm(hidden_CD, problem.weight_VD.t(), slab_CV)
            if problem.teacher_hidden_TD is not None:
                assert problem.teacher_weight_VD is not None
                teacher_CD = problem.teacher_hidden_TD[lo : lo + self.chunk_tokens]
                _mm(teacher_CD, problem.teacher_weight_VD.t(), slab_CV)
            if self.dz_CV is None or self.dh_TD is None:
                continue
            dz_CV = self.dz_CV[: hidden_CD.shape[0]]
            torch.mm(dz_CV, problem.weight_VD, out=self.dh_TD[lo : lo + self.chunk_tokens])
            if self.dw_VD is not None:
                _add_mm(dz_CV.t(), hidden_CD, self.dw_VD, first=lo == 0)


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
