"""Device helpers that every kernel shares: raw logits to the logits of the loss, and functions near
zero.

    z = post * tanh(pre * (raw + bias))      softcap c: pre = scale / c, post = c / temperature
    z = post * (raw + bias)                  without:   post = scale / temperature
    dz / d raw = pre * post * (1 - tanh^2)   or post

Columns past the vocabulary become -inf, so that they add nothing to any sum. `pre`, `post` and
`bias` are None (a compile-time constant) where they would do nothing.

`tl.exp` and `tl.log` are the only transcendental functions that every target and the interpreter
have; tanh, expm1 and log1p are built from them, with polynomials where they would cancel. Each is
within a few units in the last place of float32 (`tests/kernels/test_transform.py`).
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton
import triton.language as tl


def factors(scale: float, softcap: float | None, temperature: float) -> tuple[float | None, ...]:
    """`(pre, post)` of the formulas above; None where the factor is 1 or absent."""
    if softcap is not None:
        return scale / softcap, softcap / temperature
    post = scale / temperature
    return None, None if post == 1.0 else post


@triton.jit
def tanh(x):
    """tanh; below 0.625 an odd minimax polynomial (own fit, relative error 2e-8)."""
    square = x * x
    tail = -0.05385391 + square * (0.02100955 + square * -0.00611258)
    near_zero = x + x * square * (-0.33333329 + square * (0.13332793 + square * tail))
    size = 1.0 - 2.0 / (tl.exp(2.0 * tl.abs(x)) + 1.0)
    return tl.where(tl.abs(x) < 0.625, near_zero, tl.where(x < 0.0, -size, size))


@triton.jit
def expm1_of_negative(x):
    """exp(x) - 1 for x <= 0; above -0.35 a minimax polynomial (own fit, relative error 2e-9)."""
    tail = 0.04166072 + x * (0.0082851 + x * 0.00122733)
    near_zero = x + x * x * (0.5 + x * (0.16666641 + x * tail))
    return tl.where(x > -0.35, near_zero, tl.exp(x) - 1.0)


@triton.jit
def log1p_near_zero(x):
    """log(1 + x) for -0.35 <= x <= 0.5 by 2 artanh(x / (2 + x)), truncated at 1e-8."""
    s = x / (2.0 + x)
    square = s * s
    tail = 0.2 + square * (1.0 / 7.0 + square * (1.0 / 9.0))
    return 2.0 * (s + s * square * (1.0 / 3.0 + square * tail))


@triton.jit
def transformed(raw, bias_ptr, cols, valid, pre, post):
    """Logits of the loss in float32, -inf where not `valid`, and their slope by the raw logit."""
    z = raw.to(tl.float32)
    if bias_ptr is not None:
        z += tl.load(bias_ptr + cols, mask=valid, other=0.0).to(tl.float32)
    slope = tl.full(z.shape, 1.0, tl.float32)
    if pre is not None:
        z = tanh(z * pre)
        slope = (1.0 - z * z) * pre
    if post is not None:
        z *= post
        slope *= post
    return tl.where(valid, z, float("-inf")), slope


@triton.jit
def touchable(cols, vocab, valid, PADDED: tl.constexpr):
    """Columns that a load or store may touch. Where the memory of a row goes on to a multiple of
    16, whole vectors of it: a mask that ends within one has every element moved by itself.
    """
    if PADDED:
        return cols < (vocab + 15) // 16 * 16
    return valid


@triton.jit
def logits(row_ptr, bias_ptr, cols, there, valid, pre, post):
    """Load one row's columns, those that are `there`, and transform them."""
    raw = tl.load(row_ptr + cols, mask=there, other=0.0)
    z, _ = transformed(raw, bias_ptr, cols, valid, pre, post)
    return z


@triton.jit
def times(weight, value):
    """weight * value with 0 * anything = 0, so that an entry without mass adds nothing."""
    return tl.where(weight == 0.0, 0.0, weight * value)


@triton.jit
def guarded(pivot):
    """The pivot, or 0 where it is -inf: x = z - pivot then never is -inf - -inf."""
    return tl.where(pivot == float("-inf"), 0.0, pivot)
