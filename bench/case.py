"""One benchmark case: tensors, the float64 answer, and the bare matrix products of the same work.

The case is KL(T||S) summed over tokens, with gradients for the student's hidden states and head.

Shape letters: T tokens, D hidden, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

FLOOR_CHUNK_TOKENS = 512


@dataclass
class Case:
    """Student and teacher of one shape; the teacher is another model of the same size."""

    hidden_TD: Tensor
    weight_VD: Tensor
    teacher_hidden_TD: Tensor
    teacher_weight_VD: Tensor

    @classmethod
    def make(cls, tokens: int, hidden: int, vocab: int, seed: int = 0) -> Case:
        """Random float32 tensors whose softmax is neither flat nor a single peak (entropy about 8
        nats).
        """
        generator = torch.Generator().manual_seed(seed)
        hidden_TD = torch.randn(tokens, hidden, generator=generator)
        weight_VD = torch.randn(vocab, hidden, generator=generator) * (2.0 / hidden**0.5)
        noise_TD = torch.randn(tokens, hidden, generator=generator)
        noise_VD = torch.randn(vocab, hidden, generator=generator) * (0.2 / hidden**0.5)
        return cls(
            hidden_TD.requires_grad_(),
            weight_VD.requires_grad_(),
            hidden_TD.detach() + 0.3 * noise_TD,
            weight_VD.detach() + noise_VD,
        )

    @property
    def flops(self) -> int:
        """Floating point operations of the four matrix products."""
        tokens, hidden = self.hidden_TD.shape
        return 8 * tokens * hidden * self.weight_VD.shape[0]

    def clear(self) -> None:
        """Drop gradients of the run before."""
        self.hidden_TD.grad = None
        self.weight_VD.grad = None

    def gradients(self) -> tuple[Tensor, Tensor]:
        """Gradients of hidden and weight after a run."""
        assert self.hidden_TD.grad is not None
        assert self.weight_VD.grad is not None
        return self.hidden_TD.grad, self.weight_VD.grad


def reference(case: Case, chunk_tokens: int = 128) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients in float64 by plain autograd over the logits, some tokens at a time."""
    weight_VD = case.weight_VD.detach().double().requires_grad_()
    teacher_VD = case.teacher_weight_VD.double()
    total = torch.zeros((), dtype=torch.float64)
    hidden_grads = []
    for lo in range(0, case.hidden_TD.shape[0], chunk_tokens):
        rows = slice(lo, lo + chunk_tokens)
        hidden_CD = case.hidden_TD.detach()[rows].double().requires_grad_()
        student_CV = (hidden_CD @ weight_VD.t()).log_softmax(-1)
        teacher_CV = (case.teacher_hidden_TD[rows].double() @ teacher_VD.t()).log_softmax(-1)
        loss = (teacher_CV.exp() * (teacher_CV - student_CV)).sum()
        loss.backward()
        assert hidden_CD.grad is not None
        hidden_grads.append(hidden_CD.grad)
        total += loss.detach()
    assert weight_VD.grad is not None
    return total, torch.cat(hidden_grads), weight_VD.grad


class Floor:
    """The four matrix products alone, into memory that exists: nothing that computes the loss can
    be faster.
    """

    def __init__(self, case: Case) -> None:
        tokens, vocab = case.hidden_TD.shape[0], case.weight_VD.shape[0]
        self.case = case
        self.chunk = min(FLOOR_CHUNK_TOKENS, tokens)
        self.slab_CV = torch.empty(self.chunk, vocab)
        self.dz_CV = torch.randn(self.chunk, vocab)
        self.dh_TD = torch.empty_like(case.hidden_TD, requires_grad=False)
        self.dw_VD = torch.empty_like(case.weight_VD, requires_grad=False)

    @torch.no_grad()
    def __call__(self) -> None:
        """Run them once."""
        case = self.case
        for lo in range(0, case.hidden_TD.shape[0], self.chunk):
            rows = slice(lo, lo + self.chunk)
            count = case.hidden_TD[rows].shape[0]
            slab_CV, dz_CV = self.slab_CV[:count], self.dz_CV[:count]
            torch.mm(case.hidden_TD[rows], case.weight_VD.t(), out=slab_CV)
            torch.mm(case.teacher_hidden_TD[rows], case.teacher_weight_VD.t(), out=slab_CV)
            torch.mm(dz_CV, case.weight_VD, out=self.dh_TD[rows])
            self.dw_VD.addmm_(dz_CV.t(), case.hidden_TD[rows], beta=0 if lo == 0 else 1)
