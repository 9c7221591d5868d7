"""Statistics without the tokens that don't count: replaced before the arithmetic, not after it.

Such tokens may hold anything: padding NaN, the sampled divergence of a teacher that bans an id
infinity. 0 * NaN is NaN, and a branch that torch.where does not take still sends 0 times its
derivative back; so neither a factor of 0 nor a choice afterwards keeps them out.

Shape letter: C tokens of a chunk.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdkernels.engine.stats import DIFFERENTIABLE


class Shielded:
    """Statistics or inputs in which dropped tokens hold `fill` and get no gradient.

    0 is a legal log-prob, entropy and divergence, and 1 a legal scale. Where all log-probs are 0
    student and teacher are equal, so every divergence is 0 too.

    Args:
        source: what has the tensors `[C, ...]` as attributes.
        keep_C: bool, True where the token counts.
        fill: what stands where it does not.
        live: the names that get a gradient; all others are constants.
    """

    def __init__(
        self,
        source: Any,
        keep_C: Tensor,
        *,
        fill: int = 0,
        live: tuple[str, ...] = DIFFERENTIABLE,
    ) -> None:
        self._source, self._keep_C, self._fill, self._live = source, keep_C, fill, live

    def __getattr__(self, name: str) -> Tensor:
        value: Tensor = getattr(self._source, name)
        if name not in self._live:
            value = value.detach()
        drop = ~self._keep_C.reshape(self._keep_C.shape + (1,) * (value.dim() - self._keep_C.dim()))
        return torch.masked_fill(value, drop, self._fill)
