"""tanh, expm1 and log1p of the kernels against float64, over the whole range they are used on."""

import pytest
import torch
import triton
import triton.language as tl
from helpers.logit_problems import DEVICE

from sdkernels.kernels.transform import expm1_of_negative, factors, log1p_near_zero, tanh

WIDTH = 4096


@triton.jit
def _apply(x_ptr, out_ptr, NAME: tl.constexpr, WIDTH: tl.constexpr):
    cols = tl.arange(0, WIDTH)
    x = tl.load(x_ptr + cols)
    if NAME == "tanh":
        y = tanh(x)
    elif NAME == "expm1":
        y = expm1_of_negative(x)
    else:
        y = log1p_near_zero(x)
    tl.store(out_ptr + cols, y)


def _on_device(name: str, x: torch.Tensor) -> torch.Tensor:
    out = torch.empty_like(x)
    _apply[(1,)](x, out, NAME=name, WIDTH=WIDTH)
    return out


def _magnitudes(largest: float) -> torch.Tensor:
    return torch.logspace(-12, 0, WIDTH, device=DEVICE, dtype=torch.float64).mul(largest).float()


@pytest.mark.parametrize(
    ("name", "exact", "x"),
    [
        ("tanh", torch.tanh, _magnitudes(20.0)),
        ("tanh", torch.tanh, -_magnitudes(1.0)),
        ("expm1", torch.expm1, -_magnitudes(90.0)),
        ("expm1", torch.expm1, -_magnitudes(1.0)),
        ("log1p", torch.log1p, -_magnitudes(0.35)),
        ("log1p", torch.log1p, _magnitudes(0.5)),
    ],
)
def test_relative_error_is_a_few_units_in_the_last_place(name: str, exact, x: torch.Tensor) -> None:
    reference = exact(x.double())
    error = ((_on_device(name, x).double() - reference) / reference).abs().max().item()
    assert error < 4 * torch.finfo(torch.float32).eps


def test_limits_are_exact() -> None:
    x = torch.zeros(WIDTH, device=DEVICE)
    for name in ("tanh", "expm1", "log1p"):
        assert (_on_device(name, x) == 0).all()
    assert (_on_device("expm1", x - torch.inf) == -1).all()
    assert (_on_device("tanh", x + torch.inf) == 1).all()
    assert (_on_device("tanh", x - torch.inf) == -1).all()


def test_factors_that_do_nothing_are_none() -> None:
    assert factors(1.0, None, 1.0) == (None, None)
    assert factors(2.0, None, 2.0) == (None, None)
    assert factors(3.0, None, 2.0) == (None, 1.5)
    assert factors(1.0, 30.0, 2.0) == (1.0 / 30.0, 15.0)
