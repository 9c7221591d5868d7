"""Multiply a large tensor in place by a number on its device, and touch nothing where it is 1.

    x = x * ratio

Sums over chunks whose scale falls now and then take this: the host never learns whether it fell, so
it cannot leave the launch out, and a pass over a weight's gradient moves nearly as many bytes as
the row passes of a chunk (shape A, chunks of 2048 tokens: 5.0 and 5.6 GB).
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton
import triton.language as tl
from torch import Tensor

from .launch import OPTIONS, on_device

TILE = 2048
TILES = 32  # of one program: few programs where there is nothing to do


@triton.jit(do_not_specialize_on_alignment=("ratio_ptr",))
def rescale_kernel(x_ptr, ratio_ptr, count, TILE: tl.constexpr, TILES: tl.constexpr):
    """One program for each TILES * TILE numbers."""
    ratio = tl.load(ratio_ptr)
    if ratio != 1.0:
        start = tl.program_id(0).to(tl.int64) * (TILE * TILES)
        for tile in range(TILES):
            places = start + tile * TILE + tl.arange(0, TILE)
            there = places < count
            x = tl.load(x_ptr + places, mask=there)
            tl.store(x_ptr + places, x * ratio, mask=there)


def rescale(x: Tensor, ratio: Tensor) -> None:
    """x *= ratio for a contiguous `x` and a `ratio` of one number, both float32 on one device."""
    assert x.is_contiguous()
    with on_device(x):
        rescale_kernel[(triton.cdiv(x.numel(), TILE * TILES),)](
            x, ratio, x.numel(), TILE=TILE, TILES=TILES, num_warps=4, **OPTIONS
        )
