"""How many tokens fit into a chunk: a byte budget for the logits, never a rule on shapes.

The slabs of a chunk are the only memory that grows with the vocabulary, so the budget bounds what a
loss needs beyond its inputs and gradients, and the number of tokens does not enter.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch

MIB = 1 << 20


@dataclass(frozen=True)
class ChunkPlan:
    """Token ranges of the chunks."""

    tokens: int
    chunk_tokens: int

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
    total = torch.cuda.get_device_properties(device).total_memory
    return min(max(int(0.025 * total), 256 * MIB), 4096 * MIB)


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
    most, above = 1, max(tokens, 1) + 1
    while above - most > 1:
        middle = (most + above) // 2
        if middle * token_bytes + scratch_bytes(middle) <= budget_bytes:
            most = middle
        else:
            above = middle
    count = max(1, -(-tokens // most))
    return ChunkPlan(tokens, -(-tokens // count))
