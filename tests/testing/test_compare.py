from collections.abc import Callable
from dataclasses import replace
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from sdkernels.testing import (
    Inputs,
    assert_close_to_reference,
    assert_exact,
    input_families,
    mutants,
)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
LOW_PRECISION = DTYPES[1:]
SHAPES = [(1, 16, 33), (7, 16, 33), (64, 64, 64), (300, 48, 129), (1024, 32, 200)]
# Families whose rows are of comparable size. Where a few rows dwarf the rest (`peaked`), rounding
# the large ones costs more than the small ones hold: the blind spot that the docstring names.
FAMILIES = [
    "small_random",
    "near_minus_100",
    "near_plus_100",
    "constant_shift",
    "leading_block_banned",
]


class Results(NamedTuple):
    """KL(teacher || student) of each token, and its gradients under a random upstream gradient."""

    value: Tensor
    hidden_grad: Tensor
    weight_grad: Tensor


def eager(inputs: Inputs, upstream_T: Tensor) -> Results:
    """Plain autograd over materialised logits, in the dtype of `inputs` throughout."""
    hidden_TD = inputs.hidden_TD.clone().requires_grad_()
    weight_VD = inputs.weight_VD.clone().requires_grad_()
    student = replace(inputs, hidden_TD=hidden_TD, weight_VD=weight_VD).logits().log_softmax(-1)
    teacher = inputs.teacher_logits().log_softmax(-1)
    gap = torch.where(teacher.isfinite(), teacher - student, 0.0)
    value_T = (teacher.exp() * gap).sum(-1)
    (value_T * upstream_T.to(value_T.dtype)).sum().backward()
    return Results(value_T.detach(), hidden_TD.grad, weight_VD.grad)


def formula(inputs: Inputs, upstream_T: Tensor) -> Results:
    """The same by the closed-form gradient, over logits in reversed column order."""
    student_TV = inputs.logits().flip(-1).softmax(-1)
    teacher_TV = inputs.teacher_logits().flip(-1).softmax(-1)
    ratio_TV = torch.where(teacher_TV > 0, teacher_TV / student_TV, 1.0)
    dlogits_TV = upstream_T.to(student_TV.dtype)[:, None] * (student_TV - teacher_TV)
    return Results(
        (teacher_TV * ratio_TV.log()).sum(-1),
        dlogits_TV @ inputs.weight_VD.flip(0),
        (dlogits_TV.T @ inputs.hidden_TD).flip(0),
    )


def rounded_at_the_end(
    compute: Callable[[Inputs, Tensor], Results], inputs: Inputs, upstream_T: Tensor
) -> Results:
    """float32 inside, one rounding: what a fused kernel does, and what a good reference does."""
    dtype = inputs.hidden_TD.dtype
    return Results(*(x.to(dtype) for x in compute(inputs.to(torch.float32), upstream_T)))


def problem(family: str, shape: tuple[int, int, int], dtype: torch.dtype) -> tuple[Inputs, Tensor]:
    inputs = input_families()[family](*shape, dtype=dtype)
    upstream_T = torch.randn(shape[0], generator=torch.Generator().manual_seed(1))
    return inputs, upstream_T.to(dtype)


def kind_of(field: str) -> str:
    return "value" if field == "value" else "gradient"


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
def test_accepts_a_correct_result_and_rejects_every_mutant(
    dtype: torch.dtype, shape: tuple[int, int, int], family: str
) -> None:
    inputs, upstream_T = problem(family, shape, dtype)
    exact = eager(inputs.to(torch.float64), upstream_T)
    same = rounded_at_the_end(eager, inputs, upstream_T)
    right = rounded_at_the_end(formula, inputs, upstream_T)
    for field in Results._fields:
        references = getattr(exact, field), getattr(same, field)
        result = getattr(right, field)
        assert_close_to_reference(result, *references, kind=kind_of(field), name=field)
        upstream = upstream_T if field == "hidden_grad" else None
        for _, wrong in mutants(result, upstream=upstream):
            with pytest.raises(AssertionError):
                assert_close_to_reference(wrong, *references, kind=kind_of(field))


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_a_reference_that_rounds_at_every_step_still_rejects_every_mutant(
    dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    inputs, upstream_T = problem("small_random", shape, dtype)
    exact = eager(inputs.to(torch.float64), upstream_T)
    same = eager(inputs, upstream_T)
    right = rounded_at_the_end(formula, inputs, upstream_T)
    for field in Results._fields:
        references = getattr(exact, field), getattr(same, field)
        assert_close_to_reference(getattr(right, field), *references, kind=kind_of(field))
        for _, wrong in mutants(getattr(right, field)):
            with pytest.raises(AssertionError):
                assert_close_to_reference(wrong, *references, kind=kind_of(field))


@pytest.mark.parametrize("family", [*FAMILIES, "peaked"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_exact_accepts_another_order_of_summation_and_rejects_every_mutant(
    shape: tuple[int, int, int], family: str
) -> None:
    inputs, upstream_T = problem(family, shape, torch.float64)
    expected = eager(inputs, upstream_T)
    right = eager(
        replace(
            inputs,
            weight_VD=inputs.weight_VD.flip(0),
            teacher_weight_VD=inputs.teacher_weight_VD.flip(0),
            bias_V=None if inputs.bias_V is None else inputs.bias_V.flip(0),
            teacher_bias_V=None if inputs.teacher_bias_V is None else inputs.teacher_bias_V.flip(0),
        ),
        upstream_T,
    )
    right = right._replace(weight_grad=right.weight_grad.flip(0))
    for field in Results._fields:
        reference, result = getattr(expected, field), getattr(right, field)
        assert_exact(result, reference, name=field)
        for _, wrong in mutants(result):
            with pytest.raises(AssertionError):
                assert_exact(wrong, reference)
            with pytest.raises(AssertionError):
                assert_close_to_reference(wrong, reference, reference, kind=kind_of(field))


@pytest.mark.parametrize("dtype", LOW_PRECISION, ids=str)
def test_small_gradients_get_no_free_pass(dtype: torch.dtype) -> None:
    """The reason for having no absolute tolerance: one row of 1e-4 is not zero."""
    exact = 1e-4 * torch.randn(1024, 64, dtype=torch.float64)
    same = exact.to(dtype)
    assert_close_to_reference(same.clone(), exact, same, kind="gradient")
    for _, wrong in mutants(same):
        with pytest.raises(AssertionError):
            assert_close_to_reference(wrong, exact, same, kind="gradient")


def test_what_is_allowed_follows_the_reference_and_the_kind() -> None:
    exact = torch.randn(4000, dtype=torch.float64)
    same = (exact * (1 + 1e-3 * torch.randn_like(exact))).float()
    result = (exact + 2.5 * (same.double() - exact)).float()
    comparison = assert_close_to_reference(result, exact, same, kind="gradient")
    assert comparison.l2_error.same_precision == pytest.approx(1e-3, rel=0.1)
    assert comparison.l2_error.actual == pytest.approx(2.5e-3, rel=0.1)
    assert comparison.l2_error.allowed == pytest.approx(
        3 * comparison.l2_error.same_precision, 0.01
    )
    with pytest.raises(AssertionError, match="wrong value"):
        assert_close_to_reference(result, exact, same, kind="value")


def test_the_message_has_every_number() -> None:
    exact = torch.tensor([[1.0, 2.0], [3.0, 4.0]], dtype=torch.float64)
    same = exact.float()
    wrong = same.clone()
    wrong[1, 0] = 3.5
    with pytest.raises(AssertionError) as failure:
        assert_close_to_reference(wrong, exact, same, kind="gradient", name="dW")
    message = str(failure.value)
    assert message.startswith("dW: wrong gradient, float32 of shape (2, 2)\n")
    for measure in ("l2_error", "max_error", "gain_error"):
        assert measure in message
    assert "5.000e-01" in message
    assert "largest deviation at (1, 0): 3.5, expected 3.0" in message


SPECIAL = [float("nan"), float("inf"), float("-inf")]


@pytest.mark.parametrize("special", SPECIAL)
def test_nan_and_infinities_must_stand_in_the_same_places(special: float) -> None:
    exact = torch.randn(5, 3, dtype=torch.float64)
    exact[2, 1] = special
    same = exact.float()
    assert_close_to_reference(same.clone(), exact, same)
    assert_exact(exact.clone(), exact)
    for other in [0.0, *(value for value in SPECIAL if value is not special)]:
        wrong = same.clone()
        wrong[2, 1] = other
        with pytest.raises(AssertionError, match=r"first disagreement at \(2, 1\)"):
            assert_close_to_reference(wrong, exact, same)
        with pytest.raises(AssertionError, match=r"first disagreement at \(2, 1\)"):
            assert_exact(wrong.double(), exact)


def test_overflow_of_the_dtype_is_expected_not_an_error() -> None:
    exact = torch.tensor([1e5, 60000.0, -1e6, 1.0], dtype=torch.float64)
    same = exact.half()
    assert same.isinf().sum() == 2
    assert_close_to_reference(same.clone(), exact, same)


def test_a_reference_of_zeros_demands_zeros() -> None:
    exact = torch.zeros(4, 3, dtype=torch.float64)
    naive = torch.full((4, 3), 1e-9)  # what plain torch makes of KL(p || p)
    assert_close_to_reference(torch.zeros(4, 3), exact, naive)
    assert_exact(exact.clone(), exact)
    with pytest.raises(AssertionError, match="max_error"):
        assert_close_to_reference(torch.full((4, 3), 1e-30), exact, naive)
    with pytest.raises(AssertionError, match="not exact"):
        assert_exact(torch.full_like(exact, 1e-300), exact)


@pytest.mark.parametrize("shape", [(0,), (0, 5), (3, 0)])
def test_empty_tensors_are_judged_by_shape_and_dtype(shape: tuple[int, ...]) -> None:
    exact, same = torch.empty(shape, dtype=torch.float64), torch.empty(shape)
    assert_close_to_reference(torch.empty(shape), exact, same)
    assert_exact(exact, exact.clone())
    with pytest.raises(AssertionError, match="shape"):
        assert_close_to_reference(torch.empty(*shape, 1), exact, same)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [1.0, -3.7, 1e-4, 1000.0])
def test_one_entry(dtype: torch.dtype, value: float) -> None:
    exact = torch.tensor(value, dtype=torch.float64)
    same = exact.to(dtype)
    assert_close_to_reference(same.clone(), exact, same)
    for name, wrong in mutants(same):
        with pytest.raises(AssertionError):
            assert_close_to_reference(wrong, exact, same, name=name)


def test_dtype_shape_and_layout_count() -> None:
    exact = torch.randn(4, 6, dtype=torch.float64)
    same = exact.float()
    with pytest.raises(
        AssertionError, match=r"grad: dtype is torch.float64, expected torch.float32"
    ):
        assert_close_to_reference(exact, exact, same, name="grad")
    with pytest.raises(AssertionError, match=r"shape is \(24,\), expected \(4, 6\)"):
        assert_close_to_reference(same.flatten(), exact, same)
    transposed_layout = same.T.contiguous().T
    with pytest.raises(AssertionError, match="strides"):
        assert_close_to_reference(transposed_layout, exact, same)
    assert_close_to_reference(transposed_layout, exact, same, check_stride=False)
    one_row = torch.empty_strided((1, 6), (99, 1)).copy_(same[:1])
    assert_close_to_reference(one_row, exact[:1], same[:1])
    with pytest.raises(AssertionError, match="dtype"):
        assert_exact(same, exact)
    with pytest.raises(AssertionError, match="shape"):
        assert_exact(exact[:2], exact)


def test_unusable_references_are_refused() -> None:
    exact = torch.randn(8, 8, dtype=torch.float64)
    same = exact.float()
    with pytest.raises(ValueError, match="kind is 'loss'; accepted: 'value', 'gradient'"):
        assert_close_to_reference(same, exact, same, kind="loss")
    with pytest.raises(TypeError, match=r"reference_fp64 is torch\.float32"):
        assert_close_to_reference(same, same, same)
    with pytest.raises(TypeError, match=r"compare integer tensors with torch\.equal"):
        assert_close_to_reference(same.long(), exact, same)
    with pytest.raises(ValueError, match="the references disagree on the shape"):
        assert_close_to_reference(same, exact, same[:4])
    with pytest.raises(ValueError, match=r"relative L2 error of 0\.5"):
        assert_close_to_reference(same, exact, 0.5 * same)
    broken = same.clone()
    broken[0, 0] = float("nan")
    with pytest.raises(ValueError, match="NaN or infinite where reference_fp64 is finite"):
        assert_close_to_reference(same, exact, broken)
    low = exact.bfloat16()
    assert_close_to_reference(low, exact.float(), low)
