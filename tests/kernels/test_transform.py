"""exp, tanh, expm1 and log of the kernels against float64, over the range they are used on."""

import pytest
import torch
import triton
import triton.language as tl
from helpers.logit_problems import DEVICE

from sdkernels.kernels.transform import exp, expm1_near_zero, factors, log_of_sum, short_exp, tanh

WIDTH = 4096


@triton.jit
def _apply(x_ptr, out_ptr, NAME: tl.constexpr, WIDTH: tl.constexpr):
    cols = tl.arange(0, WIDTH)
    x = tl.load(x_ptr + cols)
    if NAME == "tanh":
        y = tanh(x)
    elif NAME == "exp":
        y = exp(x)
    elif NAME == "short_exp":
        y = short_exp(x)
    elif NAME == "fma":
        y = tl.fma(x, x, -1.0 - 2.0 * (x - 1.0))
    elif NAME == "expm1":
        y = expm1_near_zero(x)
    elif NAME == "log1p":
        y = log_of_sum(1.0 + x, x)
    else:
        y = log_of_sum(x, x - 1.0)
    tl.store(out_ptr + cols, y)


def _on_device(name: str, x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    _apply[(1,)](x, out, NAME=name, WIDTH=WIDTH)
    return out


def _magnitudes(largest: float) -> torch.Tensor:
    return torch.logspace(-12, 0, WIDTH, device=DEVICE, dtype=torch.float64).mul(largest).float()


def _rounds_once() -> bool:
    """Whether `tl.fma` is one: the interpreter of Triton 3.6 rounds the product, too."""
    x = torch.full((WIDTH,), 1.0 + 2.0**-12, device=DEVICE)
    return bool((_on_device("fma", x) == 2.0**-24).all())


@pytest.mark.parametrize(
    ("name", "exact", "x"),
    [
        ("tanh", torch.tanh, _magnitudes(20.0)),
        ("tanh", torch.tanh, -_magnitudes(1.0)),
        ("exp", torch.exp, -_magnitudes(80.0)),
        ("exp", torch.exp, _magnitudes(1.0)),
        ("short_exp", torch.exp, -_magnitudes(40.0)),
        ("expm1", torch.expm1, -_magnitudes(0.35)),
        ("expm1", torch.expm1, _magnitudes(0.35)),
        ("log1p", torch.log1p, -_magnitudes(0.5)),
        ("log1p", torch.log1p, _magnitudes(0.5)),
        ("log", torch.log, _magnitudes(0.75)),
    ],
)
def test_relative_error_is_a_few_units_in_the_last_place(name: str, exact, x: torch.Tensor) -> None:
    if name.endswith("exp") and not _rounds_once():
        x = x.clamp_min(-1.0)
    reference = exact(x.double())
    error = ((_on_device(name, x).double() - reference) / reference).abs().max().item()
    assert error < 4 * torch.finfo(torch.float32).eps


def test_limits_are_exact() -> None:
    x = torch.zeros(WIDTH, device=DEVICE)
    for name in ("tanh", "expm1", "log1p"):
        assert (_on_device(name, x) == 0).all()
    assert (_on_device("exp", x) == 1).all()
    assert (_on_device("exp", x - 200.0) == 0).all()
    assert (_on_device("tanh", x + torch.inf) == 1).all()
    assert (_on_device("tanh", x - torch.inf) == -1).all()


def test_nan_stays_nan() -> None:
    x = torch.full((WIDTH,), torch.nan, device=DEVICE)
    for name in ("exp", "tanh", "expm1"):
        assert _on_device(name, x).isnan().all(), name


def test_factors_that_do_nothing_are_none() -> None:
    assert factors(1.0, None, 1.0) == (None, None)
    assert factors(2.0, None, 2.0) == (None, None)
    assert factors(3.0, None, 2.0) == (None, 1.5)
    assert factors(1.0, 30.0, 2.0) == (1.0 / 30.0, 15.0)
