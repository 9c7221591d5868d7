"""float16 gradients of logits: the row of every token times a power of two of its own.

They are linear in the token's coefficients c, and these are as small as a mean over all tokens or
as large as a loss scale makes them; float16 has digits from 6e-8 to 65504. With z the logits, h the
hidden states, W the head's weight, |dz / d raw| <= slope, and 2^e(x) the power of two below x,

    m_i = slope sum_k |c_ik| b_ik     b = 1 + KL(S||T) for that divergence, else 1
    s_i = 2^12 / 2^e(m_i)             dz'_i = s_i dz_i
    k_i = 2^14 / 2^e(max_j |h_ij|)    u = min of s_i k_i so far
    dh_i = (dz'_i W) / s_i            dW = (sum_i dz'_i^T (h_i u / s_i)) / u

b bounds the derivatives: |S (log S/T - KL)| <= 1 + KL, since S log T/S <= T - S and its sum is -KL;
the entropy's reach 3.5 at a million entries, all others 1. So |dz'| < 2^15 and |h u / s| < 2^15.
Powers of two round nothing. What is lost is, in dz, below 2^-36 of m, and in dW what a token adds
where s_i k_i is 2^28 times the smallest, 2^28 max_j |h_ij| times where that is less than 1.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TARGET = 2.0**12
HIDDEN_TARGET = 2.0**14
EXPONENT = 0x7F800000
# m of coefficients that are 0, and the smallest one: s k and 1 / (s k) are normal numbers then.
LEAST = 2.0**-100


def row_scales(coefs: dict[str, Tensor], slope: float, stats: dict[str, Tensor]) -> Tensor:
    """s of the module, float32 `[C]`, for coefficients `[C]` or `[C, K]` by statistic, and the
    statistics of the chunk.
    """
    sizes_C = torch.zeros_like(stats["lse"], dtype=torch.float32)
    for name, coef in coefs.items():
        size = coef.detach().abs().float()
        if name == "kl_student_teacher":
            # An infinite divergence without a coefficient has no gradient.
            size = torch.where(size == 0, 0.0, size * (1 + stats[name].float()))
        sizes_C += size if size.dim() == 1 else size.sum(-1)
    return TARGET / _power_of_two(sizes_C * slope).clamp_min(LEAST)


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

    def lower(self, scale_C: Tensor, hidden_CD: Tensor) -> Tensor | None:
        """Take in the tokens of a chunk; by what sums in the old unit have to be multiplied (None:
        there are none yet).
        """
        if scale_C.shape[0] == 0:
            return None
        largest_C = torch.linalg.vector_norm(hidden_CD, math.inf, dim=-1, dtype=torch.float32)
        # Of hidden states below 1 too: u / s itself has to be a number of float16.
        room_C = HIDDEN_TARGET / _power_of_two(largest_C).clamp_min(1.0)
        before, lowest = self.value, (scale_C * room_C).amin()
        self.value = lowest if before is None else torch.minimum(before, lowest)
        return None if before is None else self.value / before


def _power_of_two(x: Tensor) -> Tensor:
    """The largest one that is not above x >= 0, in float32; 0 for 0 and below normal numbers."""
    return (x.view(torch.int32) & EXPONENT).view(torch.float32)
