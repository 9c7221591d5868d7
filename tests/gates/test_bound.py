"""Rules of bound gates."""

import dataclasses

import pytest
import torch

from sdkernels.gates import DirectionAdaptive, direction


def test_thresholds_can_be_repacked() -> None:
    """Sequences packed into one row: bind first, then move the thresholds along with the tokens."""
    H_BL = torch.rand(2, 16, generator=torch.Generator().manual_seed(0))
    mask = torch.arange(16) < torch.tensor([[16], [11]])
    bound = DirectionAdaptive().bind(H_BL, mask)
    packed = dataclasses.replace(bound, tau=bound.tau[mask], sigma=bound.sigma[mask])
    got = packed.direction(H_BL[mask], packed.tau, packed.sigma)
    assert torch.equal(got, bound.direction(H_BL, bound.tau, bound.sigma)[mask])


def test_the_smooth_rule_needs_a_scale() -> None:
    with pytest.raises(ValueError, match="sigma=None is not accepted by the 'tanh' rule"):
        direction(torch.ones(2), torch.ones(2), None)


def test_sigma_0_marks_no_direction_for_both_rules() -> None:
    H, tau, sigma = torch.tensor([0.0, 2.0]), torch.ones(2), torch.tensor([0.0, 1.0])
    assert direction(H, tau, sigma, rule="sign").tolist() == [0.0, -1.0]
    assert direction(H, tau, sigma, rule="tanh")[0] == 0
