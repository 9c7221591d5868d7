"""How a gate meets the engine: thresholds before the first chunk, `direction` in every chunk."""

import dataclasses
import re
from typing import Any

import pytest
import torch
from helpers.logit_problems import DEVICE
from torch import Tensor

import sdkernels as sd
from sdkernels.gates import DirectionAdaptive, EntropySign
from sdkernels.rows import torch_rows
from sdkernels.rows.blocks import Scratch
from sdkernels.testing import assert_close_to_reference

B, L, D, V = 3, 20, 6, 31
GENERATOR = torch.Generator().manual_seed(0)
HIDDEN = 2 * torch.randn(B, L, D, generator=GENERATOR, dtype=torch.float64)
WEIGHT = torch.randn(V, D, generator=GENERATOR, dtype=torch.float64)
MASK = torch.rand(B, L, generator=GENERATOR) > 0.3
GATES: dict[str, Any] = {
    "fixed": EntropySign(tau=2.5),
    "quantile": EntropySign(quantile=0.8),
    "batch_quantile": EntropySign(quantile=0.8, scope="batch"),
    "smooth": DirectionAdaptive(rho=0.2),
    "smooth_fixed": DirectionAdaptive(tau=2.5, sigma=0.3),
}


def expected_direction(gate: Any, mask: Tensor | None) -> Tensor:
    entropy = torch.distributions.Categorical(logits=HIDDEN @ WEIGHT.t()).entropy()
    valid = torch.ones(B, L, dtype=torch.bool) if mask is None else mask
    bound = gate.bind(entropy, valid)
    return bound.direction(entropy, bound.tau, bound.sigma).masked_fill(~valid, 0.0)


@pytest.mark.parametrize("chunk_bytes", [None, 12_000])
@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("name", GATES)
def test_direction(name: str, mask: Tensor | None, chunk_bytes: int | None) -> None:
    stats = sd.token_stats(HIDDEN, WEIGHT, gate=GATES[name], mask=mask, chunk_bytes=chunk_bytes)
    torch.testing.assert_close(stats.direction, expected_direction(GATES[name], mask))
    assert stats.direction.unique().numel() > 1
    assert not stats.direction.requires_grad


def test_direction_weighs_a_loss_without_a_gradient_of_its_own() -> None:
    hidden = HIDDEN.clone().requires_grad_()
    gate = GATES["smooth"]
    loss, _ = sd.token_loss(hidden, WEIGHT, lambda s, tok: s.direction * s.lse, gate=gate)
    (got,) = torch.autograd.grad(loss, hidden)
    direction = expected_direction(gate, None)
    (expected,) = torch.autograd.grad(
        (direction * (hidden @ WEIGHT.t()).logsumexp(-1)).sum(), hidden
    )
    torch.testing.assert_close(got, expected)


def test_a_bound_gate_needs_no_extra_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = sd.engine.problem.Problem.forward_chunk
    monkeypatch.setattr(
        "sdkernels.engine.problem.Problem.forward_chunk",
        lambda *arguments: calls.append(1) or forward(*arguments),
    )
    recorded = torch.distributions.Categorical(logits=HIDDEN @ WEIGHT.t()).entropy()
    bound = GATES["quantile"].bind(recorded, MASK)
    stats = sd.token_stats(HIDDEN, WEIGHT, gate=bound, mask=MASK)
    assert len(calls) == 1
    torch.testing.assert_close(stats.direction, expected_direction(GATES["quantile"], MASK))
    sd.token_stats(HIDDEN, WEIGHT, gate=GATES["fixed"])
    assert len(calls) == 2
    sd.token_stats(HIDDEN, WEIGHT, gate=GATES["quantile"])
    assert len(calls) == 4


@pytest.mark.parametrize("name", GATES)
def test_no_token(name: str) -> None:
    nothing = torch.zeros(B, L, dtype=torch.bool)
    stats = sd.token_stats(HIDDEN, WEIGHT, gate=GATES[name], mask=nothing)
    assert torch.equal(stats.direction, torch.zeros(B, L, dtype=torch.float64))
    if not GATES[name].needs_entropy:
        empty = sd.token_stats(HIDDEN[:, :0], WEIGHT, gate=GATES[name])
        assert empty.direction.shape == (B, 0)


def test_thresholds_of_another_shape_are_refused() -> None:
    entropy = torch.rand(B, L + 1)
    bound = GATES["smooth"].bind(entropy, torch.ones(B, L + 1, dtype=torch.bool))
    message = "gate.tau: expected the shape of the tokens [3, 20], got [3, 21]"
    with pytest.raises(ValueError, match=re.escape(message)):
        sd.token_stats(HIDDEN, WEIGHT, gate=bound)
    fine = GATES["smooth"].bind(torch.rand(B, L), torch.ones(B, L, dtype=torch.bool))
    with pytest.raises(ValueError, match=re.escape("gate.sigma: expected the shape of the tok")):
        sd.token_stats(HIDDEN, WEIGHT, gate=dataclasses.replace(fine, sigma=torch.ones(L)))


@pytest.mark.parametrize(("name", "mask"), [("quantile", MASK), ("smooth", None)])
def test_the_kernels_epilogue_writes_what_the_torch_rows_write(
    name: str, mask: Tensor | None
) -> None:
    exact_entropy = torch.distributions.Categorical(logits=HIDDEN @ WEIGHT.t()).entropy()
    bound = GATES[name].bind(exact_entropy, MASK)

    class KernelOnly(type(bound)):  # type: ignore[misc]
        def direction(self, *_: Any) -> Tensor:
            raise AssertionError("direction was computed outside of the kernel")

    settings: dict[str, Any] = {"mask": mask, "chunk_bytes": 6_000}
    hidden, weight = HIDDEN.float().to(DEVICE), WEIGHT.float().to(DEVICE)
    gates = {
        cls: cls(bound.rule, bound.tau.float().to(DEVICE), _float(bound.sigma))
        for cls in (KernelOnly, type(bound))
    }
    if mask is not None:
        settings["mask"] = mask.to(DEVICE)
    found = sd.token_stats(hidden, weight, gate=gates[KernelOnly], backend="triton", **settings)
    plain = sd.token_stats(hidden, weight, gate=gates[type(bound)], backend="torch", **settings)
    exact = sd.token_stats(HIDDEN, WEIGHT, gate=bound, mask=mask).direction
    if bound.rule == "sign":
        assert torch.equal(found.direction, plain.direction)
        assert torch.equal(found.direction.double().cpu(), exact)
    else:
        assert_close_to_reference(found.direction, exact.to(DEVICE), plain.direction)
    loss, reported = sd.token_loss(
        hidden,
        weight,
        lambda s, tok: s.direction * s.entropy,
        gate=gates[KernelOnly],
        backend="triton",
        **settings,
    )
    torch.testing.assert_close(reported.direction, found.direction)
    torch.testing.assert_close(loss, (plain.direction * plain.entropy).sum())


def _float(sigma: Tensor | None) -> Tensor | None:
    return None if sigma is None else sigma.float().to(DEVICE)


def test_a_gate_with_a_rule_of_its_own_is_asked_on_every_backend() -> None:
    @dataclasses.dataclass
    class Cubic:
        tau: Tensor
        sigma: None = None

        def direction(self, entropy: Tensor, tau: Tensor, sigma: Tensor | None) -> Tensor:
            return (tau - entropy) ** 3

    hidden, weight = HIDDEN.float().to(DEVICE), WEIGHT.float().to(DEVICE)
    gate = Cubic(torch.full((B, L), 2.5, device=DEVICE))
    for backend in ("torch", "triton"):
        stats = sd.token_stats(hidden, weight, gate=gate, backend=backend)
        assert torch.equal(stats.direction, (2.5 - stats.entropy) ** 3)


def test_the_pass_for_thresholds_makes_its_buffers_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    class Counted(Scratch):
        def __init__(self, *arguments: Any) -> None:
            made.append(1)
            super().__init__(*arguments)

    monkeypatch.setattr(torch_rows, "Scratch", Counted)
    hidden, weight = torch.randn(64, 8), torch.randn(50, 8)
    gate = EntropySign(quantile=0.8)
    sd.token_stats(hidden, weight, gate=gate, chunk_bytes=8192, backend="torch")
    # One set for the entropies, one for the statistics.
    assert len(made) == 2
