"""Gradients of hidden states, weight and bias, summed chunk by chunk, and handed to autograd
afterwards.

Shape letters: T tokens, C tokens of a chunk, V vocabulary, D hidden.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdkernels.engine.linear import add_weight_gradient, hidden_gradient
from sdkernels.engine.problem import Problem


class Gradients:
    """Buffers for the gradients that are needed; the weight's is summed in the compute dtype."""

    def __init__(self, problem: Problem, *, hidden: bool, weight: bool, bias: bool) -> None:
        self.problem = problem
        head, dtype = problem.head, problem.spec.compute_dtype
        hidden_TD = problem.hidden_TD
        device = hidden_TD.device
        self.hidden_TD = self.weight_VD = self.bias_V = None
        if hidden:
            # Tokens that the mask leaves out are never written.
            make = torch.empty_like if problem.kept_N is None else torch.zeros_like
            self.hidden_TD = make(hidden_TD, memory_format=torch.contiguous_format)
        if weight:
            self.weight_VD = torch.empty(head.weight.shape, dtype=dtype, device=device)
            self.weight_VD[head.vocab :].zero_()
        if bias:
            self.bias_V = torch.zeros(head.weight.shape[0], dtype=dtype, device=device)

    @property
    def wanted(self) -> bool:
        """Whether anything needs a gradient."""
        return not (self.hidden_TD is None and self.weight_VD is None and self.bias_V is None)

    def add(self, dz_CV: Tensor, hidden_CD: Tensor, lo: int, hi: int) -> None:
        """Add the part of tokens lo..hi, given the gradient of their raw logits."""
        head, dtype = self.problem.head, self.problem.spec.compute_dtype
        if self.hidden_TD is not None:
            part_CD = hidden_gradient(dz_CV, head.weight.detach()[: head.vocab], dtype)
            self._write_hidden(part_CD, lo, hi)
        if self.weight_VD is not None:
            add_weight_gradient(self.weight_VD[: head.vocab], dz_CV, hidden_CD, first=lo == 0)
        if self.bias_V is not None:
            self.bias_V[: head.vocab] += dz_CV.sum(0, dtype=dtype)

    def result(
        self, hidden_shape: torch.Size
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients of hidden, weight, bias in their own shapes and dtypes."""
        head = self.problem.head
        hidden = None if self.hidden_TD is None else self.hidden_TD.reshape(hidden_shape)
        weight = None if self.weight_VD is None else self.weight_VD.to(head.weight.dtype)
        bias = None
        if self.bias_V is not None and head.bias is not None:
            bias = self.bias_V.to(head.bias.dtype)
        return hidden, weight, bias

    def _write_hidden(self, part_CD: Tensor, lo: int, hi: int) -> None:
        assert self.hidden_TD is not None
        if self.problem.kept_N is None:
            self.hidden_TD[lo:hi] = part_CD
        else:
            self.hidden_TD[self.problem.kept_N[lo:hi]] = part_CD.to(self.hidden_TD.dtype)


def needs_grad(tensor: Tensor | None) -> bool:
    """Whether a gradient of `tensor` is wanted here and now."""
    return tensor is not None and tensor.requires_grad and torch.is_grad_enabled()


def graph_is_kept() -> bool:
    """Whether the running backward was called with `retain_graph=True`; True when torch does not
    say.
    """
    ask = getattr(torch._C._autograd, "_get_current_graph_task_keep_graph", None)
    return True if ask is None else bool(ask())
