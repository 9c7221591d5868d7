"""A block's softmax in torch, and the sums under it.

Shape letters: R rows of a block, V vocabulary (of a slice where it is split), K ids per token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sdkernels.rows.blocks import Scratch, weighted_sums


def empty_rows(log_total_R: Tensor) -> Tensor | None:
    """Rows whose logits are all -inf, None when there are none."""
    empty_R = log_total_R == -torch.inf
    return empty_R if empty_R.any() else None


def softmax(x_RV: Tensor, empty_R: Tensor | None, share_R: Tensor | None, out_RV: Tensor) -> Tensor:
    """softmax, times the slice's share of the row where there are other slices; 0 in rows whose
    logits are all -inf.
    """
    p_RV = torch.softmax(x_RV, dim=-1, out=out_RV)
    if share_R is not None:
        return p_RV.mul_(share_R[:, None]).masked_fill_((share_R == 0)[:, None], 0.0)
    return p_RV if empty_R is None else p_RV.masked_fill_(empty_R[:, None], 0.0)


@dataclass
class Softmax:
    """One model's block: pivoted logits, probabilities among them, and what goes with them."""

    x_RV: Tensor
    p_RV: Tensor
    max_R: Tensor
    pivot_R: Tensor
    sum_R: Tensor
    chosen_RK: Tensor | None

    @classmethod
    def of(cls, z_RV: Tensor, name: str, columns_RK: Tensor | None, scratch: Scratch) -> Softmax:
        """From the logits of the loss, which become x; `columns_RK` outside of them count as 0."""
        rows, vocab = z_RV.shape
        chosen_RK = None
        if columns_RK is not None:
            held_RK = (columns_RK >= 0) & (columns_RK < vocab)
            chosen_RK = z_RV.gather(-1, columns_RK.clamp(0, vocab - 1)).masked_fill_(~held_RK, 0.0)
        max_R = z_RV.amax(-1)
        empty_R = empty_rows(max_R)
        pivot_R = max_R if empty_R is None else max_R.masked_fill(empty_R, 0.0)
        x_RV = z_RV.sub_(pivot_R[:, None])
        p_RV = softmax(x_RV, empty_R, None, scratch(f"p_{name}", rows))
        # The largest probability is exp(0) / sum, so the sum needs no more exponentials.
        sum_R = p_RV.amax(-1).reciprocal()
        if empty_R is not None:
            sum_R = sum_R.masked_fill(empty_R, 0.0)
        return cls(x_RV, p_RV, max_R, pivot_R, sum_R, chosen_RK)


def sums_under(weighted: list[tuple[Softmax, Tensor]], scratch: Scratch) -> list[Tensor]:
    """For each pair the sum of e^x times the values, `[R]`."""
    mean_RF = weighted_sums([(model.p_RV, value_RV) for model, value_RV in weighted], scratch)
    mass_RF = torch.stack([model.sum_R for model, _ in weighted], dim=1)
    # In place of a product with 0, which an infinite sum would make NaN.
    return list(torch.where(mass_RF == 0, 0.0, mass_RF * mean_RF).unbind(1))
