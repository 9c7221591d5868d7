"""Inputs on which mistakes show that small uniform random logits hide.

A vocabulary tail that leaks into the sum shifts logsumexp by 0.008 nats on the usual random inputs,
inside any bf16 tolerance, and by 75 nats where all logits are near -100.

Shape letters: T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor


@dataclass(frozen=True)
class Inputs:
    """Student and teacher inputs of one family, and the logits they stand for."""

    hidden_TD: Tensor
    weight_VD: Tensor
    bias_V: Tensor | None
    teacher_hidden_TD: Tensor
    teacher_weight_VD: Tensor
    teacher_bias_V: Tensor | None

    def to(self, target: torch.dtype | torch.device | str) -> Inputs:
        """The same numbers in another dtype or on another device (exact when widening)."""
        return self._map(lambda x: x.to(target))

    def logits(self) -> Tensor:
        """Student logits `[T, V]`, materialised, in the dtype of the inputs."""
        return _logits(self.hidden_TD, self.weight_VD, self.bias_V)

    def teacher_logits(self) -> Tensor:
        """Teacher logits `[T, V]`, materialised, in the dtype of the inputs."""
        return _logits(self.teacher_hidden_TD, self.teacher_weight_VD, self.teacher_bias_V)

    def _map(self, change: Callable[[Tensor], Tensor]) -> Inputs:
        return Inputs(
            hidden_TD=change(self.hidden_TD),
            weight_VD=change(self.weight_VD),
            bias_V=None if self.bias_V is None else change(self.bias_V),
            teacher_hidden_TD=change(self.teacher_hidden_TD),
            teacher_weight_VD=change(self.teacher_weight_VD),
            teacher_bias_V=None if self.teacher_bias_V is None else change(self.teacher_bias_V),
        )


def _logits(hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> Tensor:
    logits_TV = hidden_TD @ weight_VD.T
    return logits_TV if bias_V is None else logits_TV + bias_V


def input_families() -> dict[str, Callable[..., Inputs]]:
    """The families by name; each builder takes `(tokens, hidden_size, vocab, *, dtype, seed)`.

    All families with one seed start from the same numbers, rounded to `dtype` at the end, so
    `inputs.to(torch.float64)` has the exact problem that a low-precision one stands for.

    * `small_random`: logits of standard deviation 1.
    * `peaked`: every other token nearly certain (its hidden state is a row of the weight), of
      student and teacher alike or of one of them.
    * `near_minus_100`, `near_plus_100`: `small_random` with every logit moved there by the GEMM.
    * `constant_shift`: `small_random` plus 512 on the student's bias and -512 on the teacher's:
      no probability may move.
    * `wide_range`: logits of standard deviation 200, so that most probabilities underflow.
    * `ties`: every row of the weight stands twice, and token 0 is uniform.
    * `one_banned`, `leading_block_banned`: one logit, or the first half of the vocabulary, is -inf
      on both sides.
    * `teacher_equals_student`: divergences and their gradients are exactly 0.
    * `teacher_without_support`: the teacher bans ids that the student gives mass:
      KL(student || teacher) is infinite, KL(teacher || student) finite.
    """
    return {name: partial(_build, change) for name, change in _CHANGES.items()}


def _build(
    change: Callable[[Inputs, torch.Generator], Inputs],
    tokens: int,
    hidden_size: int,
    vocab: int,
    *,
    dtype: torch.dtype = torch.float32,
    seed: int = 0,
) -> Inputs:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden_TD = normal(tokens, hidden_size)
    weight_VD = normal(vocab, hidden_size) / hidden_size**0.5
    base = Inputs(
        hidden_TD=hidden_TD,
        weight_VD=weight_VD,
        bias_V=None,
        teacher_hidden_TD=hidden_TD + 0.5 * normal(tokens, hidden_size),
        teacher_weight_VD=weight_VD + 0.3 * normal(vocab, hidden_size) / hidden_size**0.5,
        teacher_bias_V=None,
    )
    return change(base, generator).to(dtype)


def _peaked(base: Inputs, generator: torch.Generator) -> Inputs:
    tokens, vocab = len(base.hidden_TD), len(base.weight_VD)
    ids_T = torch.randint(vocab, (tokens,), generator=generator)
    # Tokens 0, 4, 8 ...: both models are sure of the same id; 2, 6, 10 ...: of different ones.
    teacher_ids_T = torch.where(torch.arange(tokens) % 4 == 2, (ids_T + 1) % vocab, ids_T)

    def sure(hidden_TD: Tensor, weight_VD: Tensor, ids_T: Tensor) -> Tensor:
        rows_TD = weight_VD[ids_T]
        peak_TD = 20 * rows_TD / rows_TD.square().sum(dim=1, keepdim=True)
        return torch.where(torch.arange(tokens)[:, None] % 2 == 0, peak_TD, hidden_TD)

    return replace(
        base,
        hidden_TD=sure(base.hidden_TD, base.weight_VD, ids_T),
        teacher_hidden_TD=sure(base.teacher_hidden_TD, base.teacher_weight_VD, teacher_ids_T),
    )


def _near(level: float) -> Callable[[Inputs, torch.Generator], Inputs]:
    """Column 0 of hidden times column 0 of weight is `level` for every logit, exactly."""

    def change(base: Inputs, _: torch.Generator) -> Inputs:
        moved = base._map(Tensor.clone)
        for hidden_TD in (moved.hidden_TD, moved.teacher_hidden_TD):
            hidden_TD[:, 0] = level
        for weight_VD in (moved.weight_VD, moved.teacher_weight_VD):
            weight_VD[:, 0] = 1.0
        return moved

    return change


def _constant_shift(base: Inputs, _: torch.Generator) -> Inputs:
    shift_V = torch.full((len(base.weight_VD),), 512.0, dtype=torch.float64)
    return replace(base, bias_V=shift_V, teacher_bias_V=-shift_V)


def _wide_range(base: Inputs, _: torch.Generator) -> Inputs:
    return replace(
        base, hidden_TD=200 * base.hidden_TD, teacher_hidden_TD=200 * base.teacher_hidden_TD
    )


def _ties(base: Inputs, _: torch.Generator) -> Inputs:
    first_of_pair_V = torch.arange(len(base.weight_VD)) // 2 * 2
    not_first_T1 = (torch.arange(len(base.hidden_TD)) > 0)[:, None]
    return replace(
        base,
        hidden_TD=base.hidden_TD * not_first_T1,
        weight_VD=base.weight_VD[first_of_pair_V],
        teacher_hidden_TD=base.teacher_hidden_TD * not_first_T1,
        teacher_weight_VD=base.teacher_weight_VD[first_of_pair_V],
    )


def _bias_banning(base: Inputs, banned: slice) -> Tensor:
    bias_V = torch.zeros(len(base.weight_VD), dtype=torch.float64)
    bias_V[banned] = float("-inf")
    return bias_V


def _one_banned(base: Inputs, _: torch.Generator) -> Inputs:
    middle = len(base.weight_VD) // 2
    bias_V = _bias_banning(base, slice(middle, middle + 1))
    return replace(base, bias_V=bias_V, teacher_bias_V=bias_V)


def _leading_block_banned(base: Inputs, _: torch.Generator) -> Inputs:
    bias_V = _bias_banning(base, slice(0, len(base.weight_VD) // 2))
    return replace(base, bias_V=bias_V, teacher_bias_V=bias_V)


def _teacher_equals_student(base: Inputs, _: torch.Generator) -> Inputs:
    return replace(base, teacher_hidden_TD=base.hidden_TD, teacher_weight_VD=base.weight_VD)


def _teacher_without_support(base: Inputs, _: torch.Generator) -> Inputs:
    return replace(base, teacher_bias_V=_bias_banning(base, slice(1, None, 3)))


_CHANGES: dict[str, Callable[[Inputs, torch.Generator], Inputs]] = {
    "small_random": lambda base, _: base,
    "peaked": _peaked,
    "near_minus_100": _near(-100.0),
    "near_plus_100": _near(100.0),
    "constant_shift": _constant_shift,
    "wide_range": _wide_range,
    "ties": _ties,
    "one_banned": _one_banned,
    "leading_block_banned": _leading_block_banned,
    "teacher_equals_student": _teacher_equals_student,
    "teacher_without_support": _teacher_without_support,
}
