"""What the thresholds of a gate are made of: quantiles of masked entropies, row by row.

Shape letters: B sequences, L tokens, R rows of tokens that share a threshold.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor


def quantile_of(H_RL: Tensor, mask_RL: Tensor, share: float) -> Tensor:
    """Linearly interpolated quantile of each row's valid entries `[R]`; 0 where there are none."""
    if H_RL.shape[-1] == 0:
        return H_RL.new_zeros(H_RL.shape[:-1])
    # torch.nanquantile takes at most 16 million elements, which a long batch exceeds.
    ordered_RL = torch.where(mask_RL, H_RL, math.inf).sort(dim=-1).values
    last_R = (mask_RL.sum(dim=-1) - 1).clamp(min=0)
    position_R = share * last_R.double()
    low_R = position_R.floor().long()
    high_R = torch.minimum(low_R + 1, last_R)
    low_value_R = ordered_RL.gather(-1, low_R.unsqueeze(-1)).squeeze(-1)
    high_value_R = ordered_RL.gather(-1, high_R.unsqueeze(-1)).squeeze(-1)
    tau_R = torch.lerp(low_value_R, high_value_R, (position_R - low_R).to(low_value_R.dtype))
    return torch.where(mask_RL.any(dim=-1), tau_R, 0.0)


def rows_of(H_BL: Tensor, mask_BL: Tensor, scope: str) -> tuple[Tensor, Tensor]:
    """Entropies and mask with one row for each set of tokens that shares a threshold."""
    if scope == "batch":
        return H_BL.reshape(-1), mask_BL.reshape(-1)
    return H_BL, mask_BL


def valid_entropies(gate: str, entropy: Tensor | None, mask: Tensor) -> tuple[Tensor, Tensor]:
    """Entropies in at least float32, without gradient and 0 outside the mask; the mask as bool."""
    if entropy is None:
        raise ValueError(
            f"{gate}.bind: entropy=None, but its threshold is a quantile; give the student's "
            "entropies (sd.token_stats without grad, or those of rollout time), or a fixed tau"
        )
    check_same_shape("entropy", entropy, mask)
    mask = mask.bool()
    return torch.where(mask, at_least_float32(entropy), 0.0), mask


def at_least_float32(tensor: Tensor) -> Tensor:
    """The tensor, detached, in float32 or wider."""
    # Not narrower than the entropies: tau is one of them and is compared with them.
    return tensor.detach().to(torch.promote_types(tensor.dtype, torch.float32))


def check_same_shape(name: str, tensor: Tensor, mask: Tensor) -> None:
    """Raise a ValueError if the tensor has not the mask's shape, `[sequences, tokens]`."""
    if tensor.shape != mask.shape or mask.dim() == 0:
        raise ValueError(
            f"{name}: expected the shape of the mask, [sequences, tokens], "
            f"got {list(tensor.shape)} with a mask of {list(mask.shape)}"
        )


def expand(per_row: Tensor, mask: Tensor) -> Tensor:
    """A number per sequence, given to each of its tokens."""
    return per_row.unsqueeze(-1).expand(mask.shape).contiguous()


def full(mask: Tensor, value: float) -> Tensor:
    """One number for every token, in float32."""
    return torch.full(mask.shape, value, dtype=torch.float32, device=mask.device)
