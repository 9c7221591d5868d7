"""Blocks of rows that the torch passes work on, their buffers, and logits as the loss sees them.

Rows are worked on in blocks small enough to stay in the cache, so that a dozen passes over a block
cost about as much as one pass over memory. Shape letters: C tokens of the chunk, R rows of a block,
V vocabulary.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import torch
from torch import Tensor

from sdkernels.rows.interface import RowSpec, Side
from sdkernels.rows.pages import large_empty

# 3 MiB of float32 a buffer, so that a handful stays in a CPU's last-level cache. Blocks half as big
# cost the same on an idle machine, but twice the barriers between threads (docs/decisions.md).
BLOCK_ELEMENTS = 786_432
# Block-sized buffers alive at once in the worst case (every loss at once on copied logits with a
# softcap), for the byte budget.
BLOCK_BUFFERS = 15


def rows_per_block(tokens: int, vocab: int, spec: RowSpec) -> int:
    """Rows of a block, of a chunk of `tokens` tokens."""
    if spec.shard is not None:
        return max(1, tokens)  # the processes talk once a block
    # At most an eighth of the chunk, so that a small budget is not eaten by the block buffers.
    return max(1, min(BLOCK_ELEMENTS // max(vocab, 1), -(-tokens // 8)))


def blocks(tokens: int, vocab: int, spec: RowSpec) -> list[tuple[int, int]]:
    """(first, last + 1) of each block; no token at all is one empty block."""
    step = rows_per_block(tokens, vocab, spec)
    return [(lo, min(lo + step, tokens)) for lo in range(0, max(tokens, 1), step)]


class Scratch:
    """Block buffers by name, made once: fresh memory for every block costs page faults."""

    def __init__(self, raw_CV: Tensor, spec: RowSpec) -> None:
        self.vocab = raw_CV.shape[1]
        self.rows = rows_per_block(raw_CV.shape[0], raw_CV.shape[1], spec)
        self.dtype, self.device = spec.compute_dtype, raw_CV.device
        self.buffers: dict[str, Tensor] = {}

    def serves(self, raw_CV: Tensor, spec: RowSpec) -> bool:
        """Whether blocks of these logits fit into the buffers."""
        needed = rows_per_block(raw_CV.shape[0], raw_CV.shape[1], spec)
        return (
            self.rows >= needed
            and self.vocab == raw_CV.shape[1]
            and (self.dtype, self.device) == (spec.compute_dtype, raw_CV.device)
        )

    def __call__(self, name: str, rows: int, dtype: torch.dtype | None = None) -> Tensor:
        """`[rows, V]` of the buffer `name`; whatever it held is lost. `dtype`: one for each name,
        None is the compute dtype.
        """
        if name not in self.buffers:
            shape = (self.rows, self.vocab)
            dtype = self.dtype if dtype is None else dtype
            self.buffers[name] = large_empty(shape, dtype=dtype, device=self.device)
        return self.buffers[name][:rows]

    def like(self, block_RV: Tensor) -> Callable[..., Tensor]:
        """Buffers by name (and dtype) for as many rows as `block_RV` has."""
        return functools.partial(self.__call__, rows=block_RV.shape[0])


def transformed(side: Side, name: str, lo: int, hi: int, scratch: Scratch) -> Tensor:
    """Logits of the loss for rows lo..hi: in place in an owned slab of the compute dtype, else in a
    copy.
    """
    raw_RV = side.raw_CV[lo:hi]
    z_RV = raw_RV if in_place(side, scratch.dtype) else scratch(name, hi - lo).copy_(raw_RV)
    if side.bias_V is not None:
        z_RV += side.bias_V
    if side.scale != 1.0:
        z_RV *= side.scale
    if side.softcap is not None:
        z_RV.div_(side.softcap).tanh_().mul_(side.softcap)
    if side.temperature != 1.0:
        z_RV /= side.temperature
    return z_RV


def reread(side: Side, name: str, lo: int, hi: int, pivot_R: Tensor, scratch: Scratch) -> Tensor:
    """x = z - pivot again: still in an owned slab of the compute dtype, else computed anew."""
    if in_place(side, scratch.dtype):
        return side.raw_CV[lo:hi]
    return transformed(side, name, lo, hi, scratch).sub_(pivot_R[:, None])


def in_place(side: Side, dtype: torch.dtype) -> bool:
    """Whether the slab may hold x: it is ours, and as exact as the arithmetic."""
    return side.owned and side.raw_CV.dtype == dtype


def weighted_sums(pairs: list[tuple[Tensor, Tensor]], scratch: Scratch) -> Tensor:
    """For each pair (p, x) sum_v p x with 0 * inf = 0, `[R, F]`. Plain products are tried first:
    only -inf logits need the guarded ones.
    """

    def sums(*, guarded: bool) -> Tensor:
        found = []
        for p_RV, x_RV in pairs:
            product_RV = torch.mul(p_RV, x_RV, out=scratch("product", p_RV.shape[0]))
            if guarded:
                product_RV.masked_fill_(p_RV == 0, 0.0)
            found.append(product_RV.sum(-1))
        return torch.stack(found, dim=1)

    sum_RF = sums(guarded=False)
    return sum_RF if torch.isfinite(sum_RF).all() else sums(guarded=True)
