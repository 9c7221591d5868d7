"""Device helpers that every kernel shares: raw logits to the logits of the loss, and functions near
zero.

    z = post * tanh(pre * (raw + bias))      softcap c: pre = scale / c, post = c / temperature
    z = post * (raw + bias)                  without:   post = scale / temperature
    dz / d raw = pre * post * (1 - tanh^2)   or post

Columns past the vocabulary become -inf, so that they add nothing to any sum. `pre`, `post` and
`bias` are None (a compile-time constant) where they would do nothing.

`tl.exp2`, `tl.log` and `tl.rsqrt` are what every target and the interpreter have, on GPUs in an
instruction or two; tanh and expm1 are built from them, with polynomials where they would cancel.
Each is within a few units in the last place of float32 (`tests/kernels/test_transform.py`).
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import triton
import triton.language as tl

# Nats, as good as infinite; a compiler makes two comparisons of one with infinity itself.
FAR = tl.constexpr(1e30)


def factors(scale: float, softcap: float | None, temperature: float) -> tuple[float | None, ...]:
    """`(pre, post)` of the formulas above; None where the factor is 1 or absent."""
    if softcap is not None:
        return scale / softcap, softcap / temperature
    post = scale / temperature
    return None, None if post == 1.0 else post


@triton.jit
def bounded(x):
    """x, or -200 where it is less (NaN stays NaN): finite, and exp of it is 0 all the same."""
    return tl.maximum(x, -200.0, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def exp(x):
    """exp of a finite x: 2^t with t = x log2 e, times 1 + d for the d = x - t log 2 that rounding t
    has lost (log 2 in two numbers). Without it the error grows with |x|, as that of `tl.exp` does,
    which is 2^t alone and spends as many instructions on results below the smallest normal number.
    Those are 0 here on some targets: see `weighed`.
    """
    t = x * 1.4426950408889634
    e = tl.exp2(t)
    d = tl.fma(t, 1.9046542e-09, tl.fma(t, -0.69314718246459961, x))
    return tl.fma(e, d, e)


@triton.jit
def short_exp(x):
    """`exp` with log 2 in one number, where registers are short: off by 3e-9 |x| more."""
    t = x * 1.4426950408889634
    e = tl.exp2(t)
    return tl.fma(e, tl.fma(t, -0.69314718246459961, x), e)


@triton.jit
def tanh(x):
    """tanh: below 1.25 an odd minimax polynomial (own fit, relative error 1.5e-8), from there
    1 - 2 / (e^2|x| + 1), where little is left of what `exp2` and `rsqrt` lose on a device: 1.3
    epsilon in all. A division would be eight instructions (twelve on AMD), the square of `rsqrt` is
    two.
    """
    square = x * x
    tail = tl.fma(square, tl.fma(square, 5.8121765e-05, -0.0005478749), 0.0025217212)
    tail = tl.fma(square, tl.fma(square, tail, -0.008040476), 0.021477811)
    tail = tl.fma(square, tl.fma(square, tail, -0.053861402), 0.13331892)
    near_zero = tl.fma(x * square, tl.fma(square, tail, -0.33333266), x)
    root = tl.rsqrt(tl.exp2(tl.abs(x) * 2.8853900817779268) + 1.0)
    size = tl.fma(root * root, -2.0, 1.0).to(tl.int32, bitcast=True)
    sign = x.to(tl.int32, bitcast=True) & -0x80000000
    return tl.where(tl.abs(x) < 1.25, near_zero, (size | sign).to(tl.float32, bitcast=True))


@triton.jit
def expm1_near_zero(x):
    """exp(x) - 1 for |x| < 0.35: a minimax polynomial (own fit, relative error 1.5e-8)."""
    tail = tl.fma(x, tl.fma(x, 0.0013871859, 0.0083668735), 0.04166743)
    tail = tl.fma(x, tl.fma(x, tail, 0.16666542), 0.49999997)
    return tl.fma(x * x, tail, x)


@triton.jit
def log_of_sum(w, u):
    """log(w) for normal w > 0, by log m + k log 2 with w = 2^k m and m in [2/3, 4/3), and a minimax
    polynomial (own fit, relative error 4e-8). Where k is 0, u stands for w - 1: it may have digits
    that were lost in w = 1 + u.
    """
    bits = w.to(tl.int32, bitcast=True)
    shift = (bits - 0x3F2AAAAB) & -0x800000
    f = tl.where(shift == 0, u, (bits - shift).to(tl.float32, bitcast=True) - 1.0)
    tail = tl.fma(f, tl.fma(f, 0.13820764, -0.15122186), 0.14042169)
    tail = tl.fma(f, tl.fma(f, tail, -0.16472325), 0.2000793)
    tail = tl.fma(f, tl.fma(f, tail, -0.25004238), 0.33333266)
    log_m = tl.fma(f * f, tl.fma(f, tail, -0.5), f)
    return tl.fma(shift.to(tl.float32), 8.2629582e-08, log_m)


@triton.jit
def transformed(raw, bias_ptr, cols, valid, pre, post):
    """Logits of the loss in float32, -inf where not `valid`, and their slope by the raw logit."""
    z = raw.to(tl.float32)
    if bias_ptr is not None:
        z += tl.load(bias_ptr + cols, mask=valid, other=0.0).to(tl.float32)
    slope = tl.full(z.shape, 1.0, tl.float32)
    if pre is not None:
        t = tanh(z * pre)
        z = t * post
        slope = tl.fma(-t, t, 1.0) * (pre * post)
    elif post is not None:
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
def weighed(e, value, allowed):
    """e * value for an exponential e, 0 where not `allowed`. An e too small for a number counts as
    the smallest one: an infinite value that has any weight at all is seen.
    """
    return tl.where(allowed, tl.maximum(e, 1.1754944e-38) * value, 0.0)


@triton.jit
def guarded(pivot):
    """The pivot, or 0 where it is -inf: x = z - pivot then never is -inf - -inf."""
    return tl.where(pivot == float("-inf"), 0.0, pivot)
