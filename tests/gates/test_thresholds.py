"""Quantiles of masked entropies."""

import pytest
import torch

from sdkernels.gates import EntropySign


def test_a_long_batch_has_quantiles() -> None:
    """torch.quantile refuses more than 16 million elements."""
    H_BL = torch.arange(17_000_000).remainder(1000).float()[None]
    bound = EntropySign(quantile=0.25).bind(H_BL, torch.ones_like(H_BL, dtype=torch.bool))
    assert bound.tau[0, 0].item() == pytest.approx(249.75, abs=1e-2)


@pytest.mark.parametrize("scope", ["sequence", "batch"])
def test_rows_without_any_position(scope: str) -> None:
    bound = EntropySign(quantile=0.8, scope=scope).bind(
        torch.zeros(3, 0), torch.zeros(3, 0, dtype=torch.bool)
    )
    assert bound.tau.shape == (3, 0)
