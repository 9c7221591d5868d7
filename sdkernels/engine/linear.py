"""The three matrix products of a chunk, accumulated in the compute dtype whatever the model's dtype
is.

Where the dtypes agree each is one BLAS call into memory that already exists, and so it is on a CUDA
or ROCm device with 16-bit factors and a float32 result. Otherwise the weight is cast a slice of the
vocabulary at a time, so that no full-precision copy of it is ever held.

Shape letters: C tokens of the chunk, V vocabulary, D hidden.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

# Vocabulary rows cast at most at once when dtypes differ; products of this size run at full speed.
MOST_CAST_ROWS = 8192


def cast_rows_within(budget_bytes: int, columns: int, compute_dtype: torch.dtype) -> int:
    """Vocabulary rows of a head with `columns` columns to cast at once: an eighth of the budget."""
    row_bytes = columns * compute_dtype.itemsize
    return min(MOST_CAST_ROWS, max(1, budget_bytes // 8 // row_bytes))


def widens(left: Tensor, right: Tensor, result: torch.dtype) -> bool:
    """Whether this device multiplies the two into a wider `result` in one call (`out_dtype=`)."""
    return (
        left.device.type == "cuda"
        and left.dtype == right.dtype
        and left.dtype in (torch.bfloat16, torch.float16)
        and result == torch.float32
    )


def project(
    hidden_CD: Tensor,
    weight_VD: Tensor,
    out_CV: Tensor,
    compute_dtype: torch.dtype,
    *,
    cast_rows: int,
) -> None:
    """out = hidden @ weight.T, with products summed in `compute_dtype` (or in out's dtype when all
    three agree).
    """
    if hidden_CD.dtype == weight_VD.dtype == out_CV.dtype:
        torch.mm(hidden_CD, weight_VD.t(), out=out_CV)
        return
    if widens(hidden_CD, weight_VD, out_CV.dtype):
        torch.mm(hidden_CD, weight_VD.t(), out_dtype=out_CV.dtype, out=out_CV)
        return
    hidden_CD = hidden_CD.to(compute_dtype)
    for lo, hi in _slices(weight_VD, cast_rows):
        slice_DV = weight_VD[lo:hi].to(compute_dtype).t()
        if out_CV.dtype == compute_dtype:
            torch.mm(hidden_CD, slice_DV, out=out_CV[:, lo:hi])
        else:
            out_CV[:, lo:hi] = hidden_CD @ slice_DV


def hidden_gradient(
    dz_CV: Tensor, weight_VD: Tensor, compute_dtype: torch.dtype, *, cast_rows: int
) -> Tensor:
    """dz @ weight, `[C, D]` in `compute_dtype`."""
    if dz_CV.dtype == weight_VD.dtype == compute_dtype:
        return dz_CV @ weight_VD
    if widens(dz_CV, weight_VD, compute_dtype):
        return torch.mm(dz_CV, weight_VD, out_dtype=compute_dtype)
    total_CD = torch.zeros(
        dz_CV.shape[0], weight_VD.shape[1], dtype=compute_dtype, device=dz_CV.device
    )
    for lo, hi in _slices(weight_VD, cast_rows):
        total_CD.addmm_(dz_CV[:, lo:hi].to(compute_dtype), weight_VD[lo:hi].to(compute_dtype))
    return total_CD


def add_weight_gradient(
    total_VD: Tensor, dz_CV: Tensor, hidden_CD: Tensor, *, first: bool, cast_rows: int
) -> None:
    """total += dz.T @ hidden, or = for the first chunk, which then needs no zero-filled buffer."""
    beta = 0 if first else 1
    if widens(dz_CV, hidden_CD, total_VD.dtype):
        if first:
            torch.mm(dz_CV.t(), hidden_CD, out_dtype=total_VD.dtype, out=total_VD)
        else:
            torch.addmm(total_VD, dz_CV.t(), hidden_CD, out_dtype=total_VD.dtype, out=total_VD)
        return
    hidden_CD = hidden_CD.to(total_VD.dtype)
    if dz_CV.dtype == total_VD.dtype:
        total_VD.addmm_(dz_CV.t(), hidden_CD, beta=beta)
        return
    for lo, hi in _slices(total_VD, cast_rows):
        total_VD[lo:hi].addmm_(dz_CV[:, lo:hi].t().to(total_VD.dtype), hidden_CD, beta=beta)


def _slices(weight_VD: Tensor, cast_rows: int) -> Iterator[tuple[int, int]]:
    vocab = weight_VD.shape[0]
    for lo in range(0, vocab, cast_rows):
        yield lo, min(lo + cast_rows, vocab)
