"""How many tokens fit into a chunk: a byte budget for the logits, never a rule on shapes.

The slabs of a chunk are the only memory that grows with the vocabulary, so the budget bounds what a
loss needs beyond its inputs and gradients, and the number of tokens does not enter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

from sdkernels.rows import RowSpec

MIB = 1 << 20
# A rule may ask whether so many tokens would fit, however many there are.
COUNTED_TOKENS = 128


@dataclass(frozen=True)
class ChunkPlan:
    """Token ranges of the chunks. `fits`: tokens that a chunk could have within the budget, counted
    up to `COUNTED_TOKENS` where there are fewer.
    """

    tokens: int
    chunk_tokens: int
    fits: int = 0

    @property
    def count(self) -> int:
        """Number of chunks, without making their ranges: a plan may be for any number of tokens."""
        return max(1, -(-self.tokens // max(self.chunk_tokens, 1)))

    @property
    def ranges(self) -> list[tuple[int, int]]:
        """(first, last + 1) of each chunk; no token at all is one empty chunk, so that every
        statistic exists.
        """
        step = max(self.chunk_tokens, 1)
        return [(lo, min(lo + step, self.tokens)) for lo in range(0, max(self.tokens, 1), step)]


def default_chunk_bytes(device: torch.device) -> int:
    """2.5 % of the device's memory, at least 256 MiB, at most 4 GiB; 256 MiB on CPU."""
    if device.type != "cuda":
        return 256 * MIB
    return share_of_memory(torch.cuda.get_device_properties(device).total_memory)


def share_of_memory(total_bytes: int) -> int:
    """The default budget on a device with `total_bytes` of memory."""
    return min(max(int(0.025 * total_bytes), 256 * MIB), 4096 * MIB)


def logits_gradient_dtype(
    backend: str, hidden: torch.dtype, weight: torch.dtype
) -> torch.dtype | None:
    """The dtype of the logits' gradient, None for that of the slab.

    16-bit factors are multiplied at full speed only by a gradient of their own dtype; float16 has
    the digits for it with a scale for each token, see `row_scale`.
    """
    narrow = hidden == weight and hidden in (torch.bfloat16, torch.float16)
    return hidden if backend == "triton" and narrow else None


def token_bytes(
    *,
    vocab: int,
    hidden_size: int,
    teacher_size: int,
    slab_dtype: torch.dtype,
    spec: RowSpec,
    cast_rows: int,
    copied_bytes: int = 0,
) -> int:
    """Bytes that one token of a chunk costs besides the row backend's scratch.

    Args:
        teacher_size: length of the teacher's hidden states; 0: its logits are not made here.
        cast_rows: vocabulary rows of a head that are cast at once where dtypes differ.
        copied_bytes: the token's teacher logits where a chunk of them has to be copied.
    """
    compute_dtype = spec.compute_dtype
    total = (2 if teacher_size else 1) * vocab * slab_dtype.itemsize + copied_bytes
    if spec.gradient_dtype is not None and spec.gradient_dtype != slab_dtype:
        total += vocab * spec.gradient_dtype.itemsize
    if slab_dtype != compute_dtype:
        total += cast_rows * compute_dtype.itemsize
    # Gathered, cast and stacked hidden states, and the part of their gradient.
    return total + (4 * hidden_size + 3 * teacher_size) * compute_dtype.itemsize


def plan_chunks(
    tokens: int,
    token_bytes: int,
    scratch_bytes: Callable[[int], int],
    budget_bytes: int,
) -> ChunkPlan:
    """Chunks of `tokens` tokens that fit into `budget_bytes`, given what a token costs
    (`token_bytes`) and what the row backend needs for a chunk of n tokens (`scratch_bytes(n)`,
    which never falls).

    Chunks are evened out: four of 512 rather than three of 680 and a rest of 8, since a small
    product runs slowly.

    A chunk has at least one token, however small the budget: there is no way to use less.
    """
    most, above = 1, max(tokens, COUNTED_TOKENS) + 1
    while above - most > 1:
        middle = (most + above) // 2
        if middle * token_bytes + scratch_bytes(middle) <= budget_bytes:
            most = middle
        else:
            above = middle
    count = max(1, -(-tokens // most))
    return ChunkPlan(tokens, -(-tokens // count), most)
