import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sdkernels as sd
from sdkernels.gates import (
    BoundGate,
    DirectionAdaptive,
    EntropySign,
)

MASK = torch.ones(3, 16, dtype=torch.bool)
MASK[1, 11:] = False
MASK[2, :] = False


def entropies(dtype: torch.dtype = torch.float32) -> Tensor:
    """Three sequences of 16, 11 and 0 tokens; NaN in the padding."""
    H_BL = 3 * torch.rand(3, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return torch.where(MASK, H_BL, math.nan).to(dtype)


def directions(bound: BoundGate, H_BL: Tensor) -> Tensor:
    return bound.direction(H_BL, bound.tau, bound.sigma)


class TestEntropySign:
    def test_a_fixed_threshold_needs_no_entropies(self) -> None:
        gate = EntropySign(tau=1.5)
        assert not gate.needs_entropy
        bound = gate.bind(None, MASK)
        assert bound.tau.dtype == torch.float32
        assert bound.tau.shape == MASK.shape
        assert bound.sigma is None
        H_C = torch.tensor([0.0, 1.5, 1.5001, 9.0])
        assert bound.direction(H_C, torch.full((4,), 1.5), None).tolist() == [1, 1, -1, -1]

    @pytest.mark.parametrize("share", [0.0, 0.2, 0.5, 0.8, 1.0])
    def test_quantile_per_sequence_ignores_padding(self, share: float) -> None:
        H_BL = entropies()
        gate = EntropySign(quantile=share)
        assert gate.needs_entropy
        bound = gate.bind(H_BL, MASK)
        for row in (0, 1):
            valid = H_BL[row][MASK[row]]
            expected = torch.where(valid <= valid.quantile(share), 1.0, -1.0)
            assert torch.equal(directions(bound, H_BL)[row][MASK[row]], expected)
        assert (bound.tau[2] == 0).all()

    def test_quantile_per_batch(self) -> None:
        H_BL = entropies()
        bound = EntropySign(quantile=0.7, scope="batch").bind(H_BL, MASK)
        torch.testing.assert_close(bound.tau, H_BL[MASK].quantile(0.7).expand(3, 16))

    @pytest.mark.parametrize("scope", ["sequence", "batch"])
    def test_too_short_a_sequence_has_no_direction(self, scope: str) -> None:
        """The quantile of one token is its own entropy: it would always be pulled."""
        H_BL = torch.tensor([[9.0, math.nan], [1.0, 2.0]])
        mask = torch.tensor([[True, False], [True, True]])
        got = directions(EntropySign(quantile=0.5, scope=scope).bind(H_BL, mask), H_BL)
        assert got[mask].tolist() == ([-1, 1, 1] if scope == "batch" else [0, 1, -1])
        for least, kept in ((3, scope == "batch"), (4, False)):
            gate = EntropySign(quantile=0.5, scope=scope, min_tokens=least)
            assert bool(directions(gate.bind(H_BL, mask), H_BL)[mask].any()) == kept
        assert EntropySign(0.5).bind(None, mask[:, :1]).sigma is None

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"quantile": 0.5, "min_tokens": 0}, "min_tokens=0 is not accepted; give a whole num"),
            ({"tau": 0.5, "min_tokens": 2}, "min_tokens=2 with a fixed tau is not accepted"),
            ({}, "give exactly one of the two"),
            ({"tau": 1.0, "quantile": 0.5}, "give exactly one of the two"),
            ({"tau": -1.0}, "tau=-1.0 is not accepted"),
            ({"tau": math.nan}, "tau=nan is not accepted"),
            ({"quantile": 1.5}, r"quantile=1.5 is not accepted; give a number in \[0, 1\]"),
            ({"quantile": 0.5, "scope": "fixed"}, "scope='fixed' with no tau"),
            ({"tau": 0.5, "scope": "batch"}, "scope='batch' with a tau"),
            ({"tau": 0.5, "scope": "row"}, "scope='row' is not accepted; give 'sequence', 'batch'"),
        ],
    )
    def test_bad_settings(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            EntropySign(**arguments)


class TestDirectionAdaptive:
    @pytest.mark.parametrize(("reading", "share"), [("top", 0.8), ("literal", 0.2)])
    def test_it_is_the_formula(self, reading: str, share: float) -> None:
        H_BL = entropies(torch.float64)
        bound = DirectionAdaptive(rho=0.2, reading=reading).bind(H_BL, MASK)
        got = directions(bound, H_BL)
        for row in (0, 1):
            H = H_BL[row][MASK[row]]
            sigma = (H - H.mean()).abs().mean() + 1e-6
            expected = ((H.quantile(share) - H) / sigma).tanh()
            torch.testing.assert_close(got[row][MASK[row]], expected, rtol=1e-12, atol=1e-14)

    def test_by_default_the_top_fifth_is_pushed(self) -> None:
        """The literal reading pushes four fifths, and all where a fifth has no entropy."""
        H_BL = torch.linspace(0, 3, 20)[None]
        H_BL[0, :5] = 0.0
        mask = torch.ones(1, 20, dtype=torch.bool)
        pushed = directions(DirectionAdaptive().bind(H_BL, mask), H_BL) < 0
        assert pushed[0, -4:].all()
        assert pushed.sum() == 4
        literal = DirectionAdaptive(reading="literal").bind(H_BL, mask)
        assert (directions(literal, H_BL) <= 0).all()

    @pytest.mark.parametrize(
        ("name", "scale"),
        [
            ("mean_abs_deviation", lambda H, tau: (H - H.mean()).abs().mean() + 1e-6),
            ("mean_abs_deviation_from_tau", lambda H, tau: (H - tau).abs().mean() + 1e-6),
            ("std", lambda H, tau: H.std() + 1e-6),
            (0.7, lambda H, tau: torch.tensor(0.7)),
        ],
    )
    @pytest.mark.parametrize("scope", ["sequence", "batch"])
    def test_scales(self, name: str | float, scale: Any, scope: str) -> None:
        H_BL = entropies()
        bound = DirectionAdaptive(sigma=name, scope=scope).bind(H_BL, MASK)
        assert bound.sigma is not None
        for row in (0, 1):
            H = H_BL[MASK] if scope == "batch" else H_BL[row][MASK[row]]
            tau = H.quantile(0.8)
            torch.testing.assert_close(bound.tau[row], tau.expand(16))
            torch.testing.assert_close(bound.sigma[row], scale(H, tau).expand(16))

    def test_too_short_a_sequence_has_no_direction(self) -> None:
        H_BL = entropies()
        bound = DirectionAdaptive(min_tokens=12).bind(H_BL, MASK)
        got = directions(bound, torch.nan_to_num(H_BL))
        assert got[0].any()
        assert not got[1:].any()
        assert DirectionAdaptive(min_tokens=11).bind(H_BL, MASK).sigma[1].all()
        assert not DirectionAdaptive().bind(H_BL[:, :7], MASK[:, :7]).sigma.any()

    def test_constant_entropies_have_no_direction(self) -> None:
        H_BL = torch.full((1, 10), 1.3)
        bound = DirectionAdaptive().bind(H_BL, torch.ones(1, 10))
        assert not directions(bound, H_BL).any()

    def test_fixed(self) -> None:
        gate = DirectionAdaptive(tau=1.0, sigma=0.5)
        assert (gate.needs_entropy, gate.scope) == (False, "fixed")
        bound = gate.bind(None, torch.ones(4))
        got = directions(bound, torch.tensor([0.0, 1.0, 1.5, 40.0]))
        expected = [math.tanh(2), 0.0, math.tanh(-1), -1.0]
        torch.testing.assert_close(got, torch.tensor(expected))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ({"rho": -0.1}, "rho=-0.1 is not accepted"),
            ({"reading": "bottom"}, "reading='bottom' is not accepted; give 'top', 'literal'"),
            ({"sigma": "mad"}, "sigma='mad' is not accepted; .*or a scale in nats"),
            ({"sigma": 0.0}, "sigma=0.0 is not accepted"),
            ({"sigma": True}, "sigma=True is not accepted"),
            ({"min_tokens": 0}, "min_tokens=0 is not accepted"),
            ({"tau": 1.0}, "with a fixed tau is not accepted; give sigma as a number"),
            ({"scope": "fixed"}, "scope='fixed' with no tau"),
        ],
    )
    def test_bad_settings(self, arguments: dict[str, Any], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            DirectionAdaptive(**arguments)


GATES = [
    EntropySign(quantile=0.3),
    EntropySign(quantile=0.3, scope="batch"),
    DirectionAdaptive(),
    DirectionAdaptive(scope="batch", sigma="std"),
    DirectionAdaptive(sigma="mean_abs_deviation_from_tau", reading="literal"),
]
every_gate = pytest.mark.parametrize("gate", GATES)


@every_gate
def test_thresholds_are_float32_detached_finite_and_of_the_masks_shape(gate: Any) -> None:
    bound = gate.bind(entropies().requires_grad_(), MASK)
    for threshold in (bound.tau, bound.sigma):
        if threshold is not None:
            assert threshold.dtype == torch.float32
            assert threshold.shape == MASK.shape
            assert not threshold.requires_grad
            assert torch.isfinite(threshold).all()


@every_gate
def test_padding_changes_nothing(gate: Any) -> None:
    """A known bug of TRL's entropy quantile (its issues 3709 and 3563)."""
    H_BL = entropies()[:2]
    tight = gate.bind(H_BL, MASK[:2])
    wide_H, wide_mask = torch.full((2, 40), 77.0), torch.zeros(2, 40, dtype=torch.bool)
    wide_H[:, 10:26], wide_mask[:, 10:26] = H_BL, MASK[:2]
    wide = gate.bind(wide_H, wide_mask)
    assert torch.equal(wide.tau[:, 10:26], tight.tau)
    if tight.sigma is not None:
        torch.testing.assert_close(wide.sigma[:, 10:26], tight.sigma, rtol=1e-6, atol=0)


@every_gate
def test_directions_are_within_1_and_carry_no_gradient(gate: Any) -> None:
    H_BL = torch.nan_to_num(entropies())
    bound = gate.bind(H_BL, MASK)
    got = directions(bound, (1e3 * H_BL).requires_grad_())
    assert not got.requires_grad
    assert got.abs().max() <= 1
    assert got.dtype == H_BL.dtype


@every_gate
def test_one_sequence_may_come_without_a_batch_dimension(gate: Any) -> None:
    H_BL = entropies()
    flat, batch = gate.bind(H_BL[0], MASK[0]), gate.bind(H_BL[:1], MASK[:1])
    assert torch.equal(flat.tau, batch.tau[0])


@every_gate
def test_entropies_are_required(gate: Any) -> None:
    with pytest.raises(ValueError, match="entropy=None, but its threshold is a quantile"):
        gate.bind(None, MASK)
    with pytest.raises(
        ValueError, match=r"entropy: expected the shape of the mask.*\[16\].*\[3, 16"
    ):
        gate.bind(entropies()[0], MASK)


@pytest.mark.parametrize("gate", [EntropySign(1.9), EntropySign(quantile=0.5), DirectionAdaptive()])
def test_through_the_engine(gate: Any) -> None:
    """The engine's direction of an unbound gate is the gate's of the exact entropies."""
    hidden_BLD, weight_VD = torch.randn(2, 9, 5), torch.randn(11, 5)
    mask = torch.ones(2, 9, dtype=torch.bool)
    mask[1, 8:] = False
    log_s = (hidden_BLD @ weight_VD.T).log_softmax(-1)
    H_BL = -(log_s.exp() * log_s).sum(-1)
    _, stats = sd.token_loss(
        hidden_BLD, weight_VD, lambda s, tok: s.entropy * 0, mask=mask, gate=gate
    )
    bound = gate.bind(H_BL, mask)
    expected = torch.where(mask, directions(bound, H_BL), 0.0)
    torch.testing.assert_close(stats.direction, expected, rtol=1e-4, atol=1e-4)
