"""The typical size of a sequence's gaps, by which DASD divides them."""

from __future__ import annotations

import torch
from torch import Tensor

from sdkernels.gates.thresholds import at_least_float32, check_same_shape, expand

GAP_LIMIT_NATS = 20.0


def gap_scale(gap_BL: Tensor, mask_BL: Tensor, eps: float = 1e-6) -> Tensor:
    """Typical size of the teacher-student gap of each sequence: mean |gap| + `eps`, in nats.

    DASD divides gaps by it without centring them, which would flip signs.

    Args:
        gap_BL: log T(y) - log S(y), nats. Gaps beyond +-20 count as 20, so that one banned token
            does not flatten its sequence. What stands outside the mask is ignored, NaN included.
        mask_BL: bool, or 0 / 1.
        eps: added to the mean, nats.

    Returns:
        detached, shape of the mask, float32 (float64 for such gaps); `eps` for a sequence without
        tokens.
    """
    check_same_shape("gap_BL", gap_BL, mask_BL)
    mask = mask_BL.bool()
    size = at_least_float32(gap_BL).abs().clamp(max=GAP_LIMIT_NATS)
    total = torch.where(mask, size, 0.0).sum(dim=-1)
    return expand(total / mask.sum(dim=-1).clamp(min=1) + eps, mask_BL)
