"""The three products of a chunk, for every mix of dtypes, in slices and in one piece."""

import pytest
import torch
from torch import Tensor

from sdkernels.engine.linear import (
    MOST_CAST_ROWS,
    add_weight_gradient,
    cast_rows_within,
    hidden_gradient,
    project,
)

C, D, V = 7, 5, 23
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def normal(*shape: int, seed: int, dtype: torch.dtype) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)


def assert_near(actual: Tensor, exact: Tensor, *, roundings: tuple[torch.dtype, ...]) -> None:
    """Relative L2 error within that of one rounding to the coarsest of these dtypes."""
    worst = max(torch.finfo(dtype).eps for dtype in roundings)
    assert actual.isfinite().all()
    assert (actual.double() - exact).norm() <= 2 * worst * exact.norm()


@pytest.mark.parametrize("cast_rows", [1, 4, 23, 100])
@pytest.mark.parametrize("hidden", DTYPES)
@pytest.mark.parametrize("weight", DTYPES)
@pytest.mark.parametrize("compute", [torch.float32, torch.float64])
def test_products(
    hidden: torch.dtype, weight: torch.dtype, compute: torch.dtype, cast_rows: int
) -> None:
    hidden_CD = normal(C, D, seed=0, dtype=hidden)
    weight_VD = normal(V, D, seed=1, dtype=weight)
    exact_CV = hidden_CD.double() @ weight_VD.double().t()
    for slab in {compute, hidden}:
        z_CV = torch.empty(C, V, dtype=slab)
        project(hidden_CD, weight_VD, z_CV, compute, cast_rows=cast_rows)
        assert_near(z_CV, exact_CV, roundings=(slab, compute))

        dz_CV = normal(C, V, seed=2, dtype=slab)
        part_CD = hidden_gradient(dz_CV, weight_VD, compute, cast_rows=cast_rows)
        assert part_CD.dtype == compute
        assert_near(part_CD, dz_CV.double() @ weight_VD.double(), roundings=(compute,))

        total_VD = torch.empty(V, D, dtype=compute)
        exact_VD = dz_CV.double().t() @ hidden_CD.double()
        for first in (True, False):
            add_weight_gradient(total_VD, dz_CV, hidden_CD, first=first, cast_rows=cast_rows)
        assert_near(total_VD, 2 * exact_VD, roundings=(compute,))


def test_no_token_leaves_a_first_gradient_of_zeros() -> None:
    total_VD = torch.full((V, D), torch.nan)
    add_weight_gradient(total_VD, torch.empty(0, V), torch.empty(0, D), first=True, cast_rows=4)
    assert torch.equal(total_VD, torch.zeros(V, D))


def test_slices_of_a_cast_head_stay_within_an_eighth_of_the_budget() -> None:
    for columns in (1, 64, 4096):
        for budget in (1, 10_000, 1 << 28):
            rows = cast_rows_within(budget, columns, torch.float32)
            assert 1 <= rows <= MOST_CAST_ROWS
            assert rows == 1 or rows * columns * 4 <= budget / 8
