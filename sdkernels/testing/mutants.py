"""Wrong results of the kinds that real projects have shipped, to judge a comparator by."""

from __future__ import annotations

import torch
from torch import Tensor


def mutants(tensor: Tensor, *, upstream: Tensor | None = None) -> list[tuple[str, Tensor]]:
    """Wrong variants of a correct result, each as `(name, variant)` of the same dtype.

    The last dimension counts as columns, all before it as rows (tokens); each entry of a vector is
    a row. Row and columns to spoil are those of median size: neither the easiest nor unfair. A
    variant that would not differ from `tensor` is left out (the zeros of zeros).

    * `zeros`, `sign_flip`, `gain_1.01`: of the whole;
    * `row_zeroed`, `column_block_zeroed`: one row, or one eighth of the columns;
    * `first_upstream_broadcast`: as if the first token's upstream gradient held for all tokens;
    * `transposed`: matrices only; another shape unless square;
    * `nan_in_one_place`.

    Args:
        tensor: a correct result, floating point, with at least one entry.
        upstream: the upstream gradients that `tensor` was computed with, one a row. Without it the
            norms of the rows stand in for it in `first_upstream_broadcast`.

    Raises:
        ValueError: `tensor` is empty, or `upstream` has not one entry for each row.
    """
    if tensor.numel() == 0:
        raise ValueError(f"tensor has no entry to get wrong: its shape is {tuple(tensor.shape)}")
    right = tensor.detach()
    rows_RC = right.reshape(-1, right.shape[-1]) if right.ndim > 1 else right.reshape(-1, 1)
    sizes_R = _row_norms(rows_RC) if upstream is None else upstream.detach().reshape(-1).double()
    if len(sizes_R) != len(rows_RC):
        raise ValueError(
            f"upstream is {tuple(upstream.shape) if upstream is not None else ()}, expected one "
            f"entry for each of the {len(rows_RC)} rows of tensor {tuple(tensor.shape)}"
        )
    variants = [
        ("zeros", torch.zeros_like(right)),
        ("sign_flip", -right),
        ("gain_1.01", right * 1.01),
        ("row_zeroed", _without_row(rows_RC).reshape(right.shape)),
        ("column_block_zeroed", _without_column_block(right)),
        ("first_upstream_broadcast", _first_broadcast(rows_RC, sizes_R).reshape(right.shape)),
        ("nan_in_one_place", _with_nan(right)),
    ]
    if right.ndim == 2:
        variants.append(("transposed", right.T.contiguous()))
    return [(name, variant) for name, variant in variants if not _same(variant, right)]


def _row_norms(rows_RC: Tensor) -> Tensor:
    return rows_RC.double().nan_to_num(0.0, 0.0, 0.0).norm(dim=1)


def _median_row(rows_RC: Tensor) -> int:
    """Index of the row with the median norm among those that aren't zero."""
    norms_R = _row_norms(rows_RC)
    zeros = int((norms_R == 0).sum())
    middle = zeros + (len(norms_R) - zeros) // 2
    return int(norms_R.argsort()[min(middle, len(norms_R) - 1)])


def _without_row(rows_RC: Tensor) -> Tensor:
    wrong = rows_RC.clone()
    wrong[_median_row(rows_RC)] = 0
    return wrong


def _without_column_block(right: Tensor) -> Tensor:
    wrong = right.reshape(-1, right.shape[-1] if right.ndim else 1).clone()
    columns = wrong.shape[1]
    width = max(1, columns // 8)
    start = min(_median_row(wrong.T) // width * width, columns - width)
    wrong[:, start : start + width] = 0
    return wrong.reshape(right.shape)


def _first_broadcast(rows_RC: Tensor, sizes_R: Tensor) -> Tensor:
    scale_R = torch.where(sizes_R == 0, 1.0, sizes_R[0] / sizes_R)
    return (rows_RC.double() * scale_R[:, None]).to(rows_RC.dtype)


def _with_nan(right: Tensor) -> Tensor:
    wrong = right.flatten().clone()
    wrong[len(wrong) // 2] = float("nan")
    return wrong.reshape(right.shape)


def _same(a: Tensor, b: Tensor) -> bool:
    """Same shape and entries, with NaN equal to NaN."""
    return a.shape == b.shape and bool(((a == b) | (a.isnan() & b.isnan())).all())
