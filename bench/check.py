"""What counts as right: bounds for the errors against float64, and the errors of a result.

In 16 bits a fixed bound is either met by mistakes or missed by honest rounding, which in the
gradient of a close teacher is a hundred times that of the log-likelihood. So it is a multiple of
what plain PyTorch in the same dtype gets wrong on the same problem.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .problem import Answer, Problem, plain_answer

# Relative L2 errors of value and gradient in float32 and wider.
WIDE_BOUNDS = (1e-3, 1e-2)
# In 16 bits, of plain PyTorch's error. Libraries that take the softmax of 16-bit logits in 16 bits
# too have gradients up to 1.7 times as far off; eight of 512 tokens left out are 3.9 times.
VALUE_MULTIPLE, GRADIENT_MULTIPLE = 4.0, 3.0
# Least bounds in 16 bits, in units of the dtype's eps: values summed in 16 bits, head gradients
# added up in 16 bits over tens of chunks.
FLOOR_EPS = 2.0


class WrongResult(Exception):
    """A result that is no answer: another shape, or a gradient that is missing."""


@dataclass(frozen=True)
class Bounds:
    """Largest relative L2 errors that are rounding."""

    value: float
    gradient: float

    def hold(self, value_error: float, gradient_error: float | None) -> bool:
        """Whether both are kept; NaN keeps none."""
        right = value_error <= self.value
        return right and (gradient_error is None or gradient_error <= self.gradient)

    def __str__(self) -> str:
        return f"{self.value:.2g} in value or {self.gradient:.2g} in gradient"


def bounds_of(problem: Problem, answer: Answer) -> Bounds:
    """Bounds for `problem`, whose float64 answer is `answer`."""
    dtype = problem.setting.dtype
    if dtype.itemsize > 2:
        return Bounds(*WIDE_BOUNDS)
    plain = plain_answer(problem, dtype)
    least = FLOOR_EPS * torch.finfo(dtype).eps
    gradient_error = _gradient_error(plain.gradients, answer) or 0.0
    return Bounds(
        max(VALUE_MULTIPLE * _value_error(plain, answer), least),
        max(GRADIENT_MULTIPLE * gradient_error, least),
    )


def _value_error(plain: Answer, answer: Answer) -> float:
    """Relative error of plain PyTorch's value. Errors of tokens can cancel in a sum, which is luck
    that another implementation need not have: a sum is at least as far off as independent errors
    would leave it.
    """
    if answer.value.ndim:
        return relative(plain.value, answer.value)
    off = plain.per_token.double() - answer.per_token
    return (torch.maximum(off.sum().abs(), off.norm()) / answer.value.abs()).item()


def errors_of(
    result: Tensor | tuple[Tensor, Tensor], problem: Problem, answer: Answer
) -> tuple[float, float | None]:
    """Relative L2 error of value and, the larger of hidden and head, of gradient.

    Raises:
        WrongResult: the result has another shape, or a gradient is missing.
    """
    # The forward-only case has two outputs, the others one number.
    wanted = [list(part.shape) for part in answer.value] if answer.value.ndim else []
    if isinstance(result, tuple):
        shape: list[object] = [list(part.shape) for part in result]
    else:
        shape = list(result.shape)
    if shape != wanted:
        raise WrongResult(f"result of shape {shape}, not {wanted}")
    got = torch.stack(list(result)) if isinstance(result, tuple) else result
    return relative(got, answer.value), _gradient_error(_gradients(problem), answer)


def _gradients(problem: Problem) -> list[Tensor]:
    """Gradients that a call left."""
    found = []
    for leaf, name in zip(problem.leaves, ("hidden", "weight"), strict=False):
        if leaf.grad is None:
            raise WrongResult(f"no gradient for {name}")
        found.append(leaf.grad)
    return found


def _gradient_error(gradients: list[Tensor], answer: Answer) -> float | None:
    found = [relative(*pair) for pair in zip(gradients, answer.gradients, strict=True)]
    return max(found, key=lambda error: (error != error, error), default=None)


def relative(got: Tensor, want: Tensor) -> float:
    """Relative L2 error."""
    return ((got.double() - want).norm() / want.norm()).item()
