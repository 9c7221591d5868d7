"""The scale by which DASD divides gaps."""

import math

import pytest
import torch

from sdkernels.gates import gap_scale

MASK = torch.ones(3, 16, dtype=torch.bool)
MASK[1, 11:] = False
MASK[2, :] = False


def test_gap_scale_is_the_mean_size_per_sequence() -> None:
    gap_BL = torch.where(MASK, torch.randn(3, 16), math.nan)
    scale_BL = gap_scale(gap_BL, MASK)
    assert scale_BL.shape == MASK.shape
    for row in (0, 1):
        expected = gap_BL[row][MASK[row]].abs().mean() + 1e-6
        torch.testing.assert_close(scale_BL[row], expected.expand(16))
    assert scale_BL[2, 0] == pytest.approx(1e-6)
    assert gap_scale(torch.zeros(1, 4), torch.ones(1, 4), eps=0.5)[0, 0] == 0.5


def test_one_banned_token_does_not_flatten_its_sequence() -> None:
    gap_BL = torch.tensor([[1.0, -1.0, -math.inf, 2.0]])
    assert gap_scale(gap_BL, torch.ones(1, 4))[0, 0].item() == pytest.approx(6.0)


def test_gap_scale_has_no_gradient_and_wants_one_shape() -> None:
    assert not gap_scale(torch.ones(1, 4, requires_grad=True), torch.ones(1, 4)).requires_grad
    with pytest.raises(ValueError, match="gap_BL: expected the shape of the mask"):
        gap_scale(torch.ones(4), torch.ones(1, 4))
