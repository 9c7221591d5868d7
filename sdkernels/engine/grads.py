"""Gradients of hidden states, weight and bias, summed chunk by chunk, and handed to autograd
afterwards.

Shape letters: T tokens, C tokens of a chunk, V vocabulary, D hidden.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sdkernels.engine.linear import add_weight_gradient
from sdkernels.engine.problem import Problem
from sdkernels.engine.row_scale import Unit
from sdkernels.rows.pages import large_empty

# Numbers scaled at once in a wider dtype: 32 MiB of float32.
SCALED_AT_ONCE = 1 << 23


class Part(NamedTuple):
    """A gradient; `value` is `unit` times it (None: once)."""

    value: Tensor
    unit: Tensor | None = None

    def times(self, factor: Tensor, dtype: torch.dtype, *, reuse: bool) -> Tensor:
        """The gradient times `factor` in `dtype`, see `scaled`."""
        factor = factor if self.unit is None else factor / self.unit
        return scaled(self.value, factor, dtype, reuse=reuse)

    def taken(self, dtype: torch.dtype) -> Tensor:
        """The gradient in `dtype`, perhaps in the memory of `value`."""
        if self.unit is None:
            return self.value.to(dtype)
        return scaled(self.value, 1 / self.unit, dtype, reuse=True)


class Gradients:
    """Buffers for the gradients that are needed; the weight's is summed in the compute dtype."""

    def __init__(self, problem: Problem, *, hidden: bool, weight: bool, bias: bool) -> None:
        self.problem = problem
        head, dtype = problem.head, problem.spec.compute_dtype
        self.hidden_TD = self.weight_VD = self.bias_V = None
        self.unit = Unit()
        if hidden:
            # Tokens that the mask leaves out are never written.
            make = torch.empty if problem.kept_N is None else torch.zeros
            self.hidden_TD = make(
                problem.total,
                head.hidden_size,
                dtype=self._held(problem.hidden),
                device=problem.device,
            )
        if weight:
            self.weight_VD = large_empty(head.weight.shape, dtype=dtype, device=problem.device)
            self.weight_VD[head.vocab :].zero_()
        if bias:
            self.bias_V = torch.zeros(head.weight.shape[0], dtype=dtype, device=problem.device)

    @property
    def wanted(self) -> bool:
        """Whether anything needs a gradient."""
        return not (self.hidden_TD is None and self.weight_VD is None and self.bias_V is None)

    def add(
        self, dz_CV: Tensor, scale_C: Tensor | None, hidden_CD: Tensor, lo: int, hi: int
    ) -> None:
        """Add the part of tokens lo..hi, given `Problem.logits_gradient` of them."""
        head, dtype = self.problem.head, self.problem.spec.compute_dtype
        cast_rows = self.problem.cast_rows
        if self.hidden_TD is not None:
            self._write_hidden(self.problem.hidden_gradient(dz_CV, scale_C), lo, hi)
        if self.weight_VD is None and self.bias_V is None:
            return
        share_C1 = None
        if scale_C is not None:
            share_C1 = self._share(scale_C, hidden_CD).to(dz_CV.dtype)[:, None]
            hidden_CD = hidden_CD * share_C1
        if self.weight_VD is not None:
            add_weight_gradient(
                self.weight_VD[: head.vocab], dz_CV, hidden_CD, first=lo == 0, cast_rows=cast_rows
            )
        if self.bias_V is None:
            return
        if share_C1 is None:
            self.bias_V[: head.vocab] += dz_CV.sum(0, dtype=dtype)
        else:
            bias_V1 = self.bias_V[: head.vocab, None]
            add_weight_gradient(bias_V1, dz_CV, share_C1, first=lo == 0, cast_rows=cast_rows)

    def parts(self) -> tuple[Part | None, Part | None, Part | None]:
        """Gradients of hidden, weight and bias in their shapes, and in their dtypes but for float16
        (see `_held`).
        """
        head = self.problem.head
        hidden, weight, bias = self.hidden_TD, self.weight_VD, self.bias_V
        if hidden is not None:
            hidden = hidden.reshape(self.problem.hidden.shape)
        return (
            None if hidden is None else Part(hidden),
            None if weight is None else self._summed(weight, head.weight),
            None if bias is None or head.bias is None else self._summed(bias, head.bias),
        )

    def _share(self, scale_C: Tensor, hidden_CD: Tensor) -> Tensor:
        """What `row_scale` multiplies hidden states by; lowers the unit of the sums."""
        ratio = self.unit.lower(scale_C, hidden_CD)
        for total in (self.weight_VD, self.bias_V):
            if total is not None and ratio is not None:
                self.problem.backend.rescale(total, ratio)
        return scale_C if self.unit.value is None else self.unit.value / scale_C

    def _summed(self, total: Tensor, parameter: Tensor) -> Part:
        part, dtype = Part(total, self.unit.value), self._held(parameter)
        return part if total.dtype == dtype else Part(part.taken(dtype))

    def _held(self, tensor: Tensor) -> torch.dtype:
        """The dtype in which the gradient of `tensor` waits for the upstream factor.

        Not float16: gradients of a mean over many tokens fall below its smallest number (6e-8)
        until the loss scaler has multiplied them.
        """
        held = self.problem.spec.compute_dtype
        return held if tensor.dtype == torch.float16 else tensor.dtype

    def _write_hidden(self, part_CD: Tensor, lo: int, hi: int) -> None:
        assert self.hidden_TD is not None
        if self.problem.kept_N is None:
            self.hidden_TD[lo:hi] = part_CD
        else:
            self.hidden_TD[self.problem.kept_N[lo:hi]] = part_CD.to(self.hidden_TD.dtype)


def scaled(part: Tensor, factor: Tensor, dtype: torch.dtype, *, reuse: bool) -> Tensor:
    """part * factor in `dtype`, in the memory of `part` where `reuse` allows it.

    16-bit numbers are multiplied in float32. Rounding the factor to their dtype would make a loss
    scale of 65536 infinite in float16, and 1/3 too large by 0.2 % in bfloat16.
    """
    if part.dtype == dtype and dtype.itemsize >= 4:
        factor = factor.to(dtype)
        return part.mul_(factor) if reuse else part * factor
    out = part if reuse and part.dtype == dtype else torch.empty_like(part, dtype=dtype)
    source, target = part.reshape(-1), out.view(-1)
    wide = torch.promote_types(part.dtype, torch.float32)
    for lo in range(0, source.numel(), SCALED_AT_ONCE):
        hi = lo + SCALED_AT_ONCE
        target[lo:hi] = source[lo:hi].to(wide) * factor
    return out


def needs_grad(tensor: Tensor | None) -> bool:
    """Whether a gradient of `tensor` is wanted here and now."""
    return tensor is not None and tensor.requires_grad and torch.is_grad_enabled()


def saveable(tensors: list[Tensor | None]) -> list[Tensor]:
    """Those that autograd can watch: inference tensors have no count of their changes."""
    return [tensor for tensor in tensors if tensor is not None and not tensor.is_inference()]


def first_derivative_only(
    backward: Callable[..., tuple[Tensor | None, ...]],
) -> Callable[..., tuple[Tensor | None, ...]]:
    """A `backward` without a graph, whose results raise where they are differentiated again.

    torch's `once_differentiable` lets them pass as constants where the upstream gradient is one: a
    gradient penalty would then train nothing, without a word.
    """

    @functools.wraps(backward)
    def run(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        again = torch.is_grad_enabled()  # create_graph=True
        with torch.no_grad():
            found = backward(ctx, *upstream)
        if not again:
            return found
        return tuple(None if part is None else _Once.apply(_leaf(part), part) for part in found)

    return run


def _leaf(like: Tensor) -> Tensor:
    return torch.empty(0, device=like.device, requires_grad=True)


class _Once(torch.autograd.Function):
    """Hands on a gradient that depends, as far as autograd sees, on something."""

    @staticmethod
    def forward(ctx: Any, leaf: Tensor, part: Tensor) -> Tensor:
        return part.view_as(part)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        raise RuntimeError(
            "double backward through sdkernels: its gradients have no derivative of their own (a "
            "gradient penalty, say); compute that term on materialised logits"
        )


def graph_is_kept() -> bool:
    """Whether the running backward was called with `retain_graph=True`; True when torch does not
    say.
    """
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if ask is None else bool(ask())
