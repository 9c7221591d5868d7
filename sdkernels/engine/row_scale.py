"""float16 gradients of logits: the row of every token times a power of two of its own.

They are linear in the token's coefficients c, and these are as small as a mean over all tokens or
as large as a loss scale makes them; float16 has digits from 6e-8 to 65504. With z the raw logits,
h the hidden states, W the head's weight and |dz / d raw| <= slope,

    m_i = slope sum_k |c_ik|      s_i = 16 / 2^floor(log2 m_i)      dz'_i = s_i dz_i
    dh_i = (dz'_i W) / s_i        dW = (sum_i dz'_i^T (h_i u / s_i)) / u,   u = min of s_i so far

Powers of two round nothing. What is lost is below 4e-9 of the token's own coefficient, and, in dW,
what a token adds that is 2^14 times smaller than the largest.
"""

from __future__ import annotations

import torch
from torch import Tensor

# |dz'| is at most 32 times the derivative of the statistics by the logits, which is below 1, but a
# log-ratio for KL(S||T): float16 takes 2000 nats.
TARGET = 16.0
EXPONENT = 0x7F800000
LEAST = 2.0**-100


def row_scales(coefs: dict[str, Tensor], slope: float, like_C: Tensor) -> Tensor:
    """s of the module, float32 `[C]`, for coefficients `[C]` or `[C, K]` by statistic; `like_C`
    is any tensor with an entry a token.
    """
    sizes_C = torch.zeros_like(like_C, dtype=torch.float32)
    for coef in coefs.values():
        size = coef.detach().abs().float()
        sizes_C += size if size.dim() == 1 else size.sum(-1)
    bits_C = (sizes_C * slope).view(torch.int32) & EXPONENT
    return TARGET / bits_C.view(torch.float32).clamp_min(LEAST)


def scaled_coefs(coefs: dict[str, Tensor], scale_C: Tensor) -> dict[str, Tensor]:
    """Each coefficient times the scale of its token."""
    return {
        name: coef * (scale_C if coef.dim() == 1 else scale_C[:, None])
        for name, coef in coefs.items()
    }


class Unit:
    """u of the module, which falls from chunk to chunk; None until there was a token."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def lower(self, scale_C: Tensor) -> Tensor | None:
        """Take in the tokens of a chunk; by what sums in the old unit have to be multiplied (None:
        there are none yet).
        """
        if scale_C.shape[0] == 0:
            return None
        before, lowest = self.value, scale_C.amin()
        self.value = lowest if before is None else torch.minimum(before, lowest)
        return None if before is None else self.value / before
