"""Accept a result if it is about as near to the exact one as plain torch in the same dtype.

There is no absolute tolerance here. What is allowed comes from the data: the error that plain torch
makes, plus the rounding that one addition costs in that dtype. Absolute tolerances let an all-zero
gradient pass wherever gradients are small, which in this field is nearly everywhere.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

# How much more error than plain torch in the same dtype is allowed. Gradients get more because two
# roundings meet in them (FlashAttention's tests draw the line at the same places).
ERROR_FACTORS = {"value": 2.0, "gradient": 3.0}
GAIN_TOLERANCE = 2e-3
# Relative L2 error of a same-dtype reference above which it would let wrong results through.
WORST_REFERENCE_ERROR = 0.1


@dataclass(frozen=True)
class Measure:
    """One number: of the tensor under test, of plain torch in its dtype, and the most allowed."""

    actual: float
    same_precision: float
    allowed: float

    @property
    def accepted(self) -> bool:
        """Whether the tensor under test stays within what is allowed."""
        return self.actual <= self.allowed


@dataclass(frozen=True)
class Comparison:
    """What `assert_close_to_reference` measured, over the entries where the reference is finite."""

    l2_error: Measure
    """L2 norm of the error, relative to that of the reference."""
    max_error: Measure
    """Largest absolute error, in the units of the tensor."""
    gain_error: Measure
    """`|<x, ref> / <ref, ref> - 1|`"""

    @property
    def accepted(self) -> bool:
        """Whether every measure is."""
        return all(measure.accepted for measure in vars(self).values())

    def table(self) -> str:
        """All numbers as text, one measure a line."""
        lines = [f"  {'':12}{'measured':>12}{'plain torch':>12}{'allowed':>12}"]
        for name, measure in vars(self).items():
            numbers = "".join(f"{number:12.3e}" for number in vars(measure).values())
            lines.append(f"  {name:12}{numbers}" + ("" if measure.accepted else "  <-- too large"))
        return "\n".join(lines)


def assert_close_to_reference(
    actual: Tensor,
    reference_fp64: Tensor,
    reference_same_precision: Tensor,
    *,
    kind: Literal["value", "gradient"] = "value",
    name: str = "result",
    check_stride: bool = True,
) -> Comparison:
    """Accept `actual` if it is about as near to the exact result as plain torch in the same dtype.

    Required, in this order:

    1. `actual` has the dtype, the shape and (with `check_stride`) the strides of
       `reference_same_precision`;
    2. NaN, +inf and -inf stand exactly where they stand in the reference rounded to that dtype;
    3. a reference of zeros is met exactly: there is no scale to measure an error by;
    4. the relative L2 error and the maximum error are at most 2 (`kind="value"`) or 3
       (`kind="gradient"`) times those of `reference_same_precision`, plus a floor: twice what
       adding and subtracting 0.3 rms(reference) loses in the dtype, and at least one epsilon;
    5. the gain `<actual, ref> / <ref, ref>` is within 1 +- 2e-3, whatever the reference's own is.

    Tensors with no entries, or no finite entry, are judged by 1 and 2 alone. Blind spot: a row or
    column that is smaller than the maximum error allowed for the whole tensor can go missing.

    Args:
        actual: floating point, any shape, on any device.
        reference_fp64: exact result, same shape. float64; float32 will do for a 16-bit `actual`.
        reference_same_precision: plain torch in the dtype of `actual`. Its relative L2 error must
            stay under 0.1: where rounding destroys the result (logits near 100 in bfloat16),
            compute in float32 inside and round at the end.
        kind: which factor applies.
        name: what the message calls the tensor.
        check_stride: whether the memory layout counts (it never does for dimensions of size 1).

    Returns:
        The measured numbers.

    Raises:
        AssertionError: not accepted; the message has every number that was measured.
        ValueError, TypeError: the references can't serve as references: wrong dtype or shape,
            not finite where they should be, or too inexact to judge by.

    Source: the 2x / 3x rule and the floor are those of FlashAttention's `tests/test_flash_attn.py`
    and `tests/cute/test_flash_attn.py`; there the floor shifts by 0.3 whatever the scale, which
    accepts a zero gradient as soon as gradients are small, so here the shift follows the data.
    """
    _check_references(actual, reference_fp64, reference_same_precision, kind)
    _check_layout(actual, reference_same_precision, name, check_stride)
    device = reference_fp64.device
    expected = reference_fp64.detach().double()
    rounded = expected.to(actual.dtype)
    got = actual.detach().to(device=device)
    same = reference_same_precision.detach().to(device=device)
    finite = _check_nonfinite(got, rounded, name)
    if not bool(same[finite].isfinite().all()):
        raise ValueError(
            f"reference_same_precision of {name} is NaN or infinite where reference_fp64 is "
            "finite, so it measures no error: compute it in a way that survives these inputs"
        )
    comparison = _measure(
        got[finite].double(),
        expected[finite],
        same[finite].double(),
        rounded[finite],
        ERROR_FACTORS[kind],
    )
    if comparison.l2_error.same_precision > WORST_REFERENCE_ERROR:
        raise ValueError(
            f"reference_same_precision of {name} has a relative L2 error of "
            f"{comparison.l2_error.same_precision:.2g}, so twice that would accept wrong results; "
            "compute it in float32 inside and round the result (or compare with exact zeros where "
            "the exact result is rounding noise)"
        )
    if not comparison.accepted:
        raise AssertionError(
            f"{name}: wrong {kind}, {_describe(actual)}\n{comparison.table()}\n"
            + _worst_entry(got, expected, finite)
        )
    return comparison


def assert_exact(
    actual: Tensor, reference: Tensor, *, rtol: float = 1e-12, name: str = "result"
) -> None:
    """Accept `actual` if it equals `reference` up to summation order; for float64 against float64.

    The L2 norm of the difference must be at most `rtol` times the reference's L2 norm, and the
    largest difference at most `rtol` times the reference's largest entry. dtype, shape and the
    places of NaN and infinities must be the same, and a reference of zeros must be met exactly.

    Raises:
        AssertionError: not accepted; the message has the measured numbers.
    """
    if actual.dtype != reference.dtype:
        raise AssertionError(f"{name}: dtype is {actual.dtype}, expected {reference.dtype}")
    _check_shape(actual, reference, name)
    expected = reference.detach()
    got = actual.detach().to(device=expected.device)
    finite = _check_nonfinite(got, expected, name)
    difference = got[finite].double() - expected[finite].double()
    for measure, order in (("L2", 2), ("maximum", float("inf"))):
        error, scale = _norm(difference, order), _norm(expected[finite].double(), order)
        if not error <= rtol * scale:
            raise AssertionError(
                f"{name}: not exact, {_describe(actual)}: {measure} norm of the difference is "
                f"{error:.3e}, of the reference {scale:.3e}, allowed is {rtol:g} times that\n"
                + _worst_entry(got, expected.double(), finite)
            )


def _check_references(actual: Tensor, exact: Tensor, same: Tensor, kind: str) -> None:
    """Mistakes of the test itself, as opposed to those of the code under test."""
    if kind not in ERROR_FACTORS:
        raise ValueError(f"kind is {kind!r}; accepted: {', '.join(map(repr, ERROR_FACTORS))}")
    if not actual.is_floating_point():
        raise TypeError(f"actual is {actual.dtype}; compare integer tensors with torch.equal")
    wide_enough = exact.dtype == torch.float64 or (
        exact.dtype == torch.float32 and actual.dtype.itemsize < 4
    )
    if not wide_enough:
        raise TypeError(
            f"reference_fp64 is {exact.dtype} for a {actual.dtype} result; it must be float64 "
            "(float32 will do for 16-bit results)"
        )
    if exact.shape != same.shape:
        raise ValueError(
            f"the references disagree on the shape: reference_fp64 {tuple(exact.shape)}, "
            f"reference_same_precision {tuple(same.shape)}"
        )


def _check_shape(actual: Tensor, reference: Tensor, name: str) -> None:
    if actual.shape != reference.shape:
        raise AssertionError(
            f"{name}: shape is {tuple(actual.shape)}, expected {tuple(reference.shape)}"
        )


def _check_layout(actual: Tensor, same: Tensor, name: str, check_stride: bool) -> None:
    if actual.dtype != same.dtype:
        raise AssertionError(f"{name}: dtype is {actual.dtype}, expected {same.dtype}")
    _check_shape(actual, same, name)
    if check_stride and actual.numel():
        counted = [i for i, size in enumerate(actual.shape) if size > 1]
        if any(actual.stride(i) != same.stride(i) for i in counted):
            raise AssertionError(
                f"{name}: strides are {actual.stride()}, expected {same.stride()} "
                f"for shape {tuple(actual.shape)}"
            )


def _check_nonfinite(got: Tensor, expected: Tensor, name: str) -> Tensor:
    """The mask of finite entries, after NaN, +inf and -inf were found where they belong."""
    for what, where in (("NaN", torch.isnan), ("+inf", torch.isposinf), ("-inf", torch.isneginf)):
        wrong = where(got) != where(expected)
        if bool(wrong.any()):
            index = tuple(wrong.nonzero()[0].tolist())
            raise AssertionError(
                f"{name}: {what} in {int(where(got).sum())} places, expected in "
                f"{int(where(expected).sum())}, {_describe(got)}; first disagreement at "
                f"{index}: {got[index].item()}, expected {expected[index].item()}"
            )
    return expected.isfinite()


def _measure(
    got: Tensor, expected: Tensor, same: Tensor, rounded: Tensor, factor: float
) -> Comparison:
    """All numbers of the comparison, from the finite entries (1-D; float64 but for `rounded`)."""
    inf = float("inf")
    scale, largest = _norm(expected, 2), _norm(expected, inf)
    if scale == 0.0:
        error = _norm(got, inf)
        relative = Measure(0.0 if error == 0.0 else inf, 0.0, 0.0)
        return Comparison(relative, Measure(error, _norm(same, inf), 0.0), relative)

    epsilon = torch.finfo(rounded.dtype).eps
    shift = torch.full_like(expected, 0.3 * scale / expected.numel() ** 0.5).to(rounded.dtype)
    lost = ((rounded + shift) - shift).double() - expected
    # Near the top of float16's range the sum overflows; there one epsilon stands in for the loss.
    lost = torch.where(lost.isfinite(), lost, epsilon * expected)

    def measure(error_of: Callable[[Tensor], float], floor: float) -> Measure:
        error_same = error_of(same)
        return Measure(error_of(got), error_same, factor * error_same + floor)

    unit = expected / scale
    return Comparison(
        l2_error=measure(
            lambda x: _norm(x - expected, 2) / scale, max(2 * _norm(lost, 2) / scale, epsilon)
        ),
        max_error=measure(
            lambda x: _norm(x - expected, inf), max(2 * _norm(lost, inf), epsilon * largest)
        ),
        gain_error=Measure(
            abs(float(torch.dot(got / scale, unit)) - 1.0),
            abs(float(torch.dot(same / scale, unit)) - 1.0),
            GAIN_TOLERANCE,
        ),
    )


def _norm(x: Tensor, order: float) -> float:
    """Vector norm, 0 for no entries; scaled first, so that squares don't overflow."""
    largest = float(x.abs().max()) if x.numel() else 0.0
    if order == float("inf") or largest == 0.0:
        return largest
    return float(torch.linalg.vector_norm(x / largest, order)) * largest


def _describe(x: Tensor) -> str:
    return f"{str(x.dtype).removeprefix('torch.')} of shape {tuple(x.shape)}"


def _worst_entry(got: Tensor, expected: Tensor, finite: Tensor) -> str:
    deviation = torch.where(finite, (got.double() - expected).abs(), -1.0)
    index = tuple(int(i) for i in torch.unravel_index(deviation.argmax(), deviation.shape))
    return f"  largest deviation at {index}: {got[index].item()}, expected {expected[index].item()}"
