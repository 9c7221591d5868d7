"""`TokenStats`: the statistics of a batch of tokens, one attribute each."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
from torch import Tensor

# Every statistic, whether a gradient flows through it, and what must be passed for it to exist.
STATISTICS: dict[str, tuple[bool, str]] = {
    "logp": (True, "targets="),
    "entropy": (True, ""),
    "lse": (True, ""),
    "teacher_logp": (False, "targets= and teacher="),
    "teacher_entropy": (False, "a teacher= with the full vocabulary"),
    "teacher_lse": (False, "a teacher= with the full vocabulary"),
    "kl_teacher_student": (True, "teacher="),
    "kl_student_teacher": (True, "teacher="),
    "jsd": (True, "teacher= and jsd_beta="),
    "clipped_kl_teacher_student": (True, "teacher= and entry_clip="),
    "topk_ids": (False, "topk= or a TopKTeacher"),
    "topk_logp": (True, "topk= or a TopKTeacher"),
    "teacher_topk_logp": (False, "teacher= and topk=, or a TopKTeacher"),
    "direction": (False, "gate="),
}
DIFFERENTIABLE = tuple(name for name, (differentiable, _) in STATISTICS.items() if differentiable)


class MissingFieldError(AttributeError, ValueError):
    """An attribute that was asked for does not exist; `hasattr` still answers False."""


class TokenStats:
    """Per-token statistics, in nats, as attributes; see the table in `docs/engine.md` and
    `STATISTICS`.

    Inside a loss function tensors are `[C]` (or `[C, K]`) for the C tokens of a chunk; those handed
    back to the caller have the leading shape of `hidden`. A statistic that was not computed raises
    and says what to pass.
    """

    def __init__(self, fields: dict[str, Tensor]) -> None:
        self.__dict__.update(fields)

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("__"):
            raise AttributeError(name)
        if name in STATISTICS:
            raise MissingFieldError(
                f"statistic {name!r} was not computed: pass {STATISTICS[name][1]} "
                f"(computed here: {', '.join(self)})"
            )
        near = difflib.get_close_matches(name, STATISTICS, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise MissingFieldError(
            f"unknown statistic {name!r}{hint or '.'} Known: {', '.join(STATISTICS)}"
        )

    def __iter__(self) -> Iterator[str]:
        return iter(self.__dict__)

    def __contains__(self, name: object) -> bool:
        return name in self.__dict__

    def __getitem__(self, name: str) -> Tensor:
        return getattr(self, name)

    def items(self) -> list[tuple[str, Tensor]]:
        """(name, tensor) pairs, like a dict's."""
        return list(self.__dict__.items())

    def map(self, function: Callable[[Tensor], Tensor]) -> TokenStats:
        """The same statistics with `function` applied to each tensor."""
        return TokenStats({name: function(tensor) for name, tensor in self.__dict__.items()})

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}{list(tensor.shape)}" for name, tensor in self.__dict__.items())
        return f"TokenStats({shapes})"


class Tokens:
    """The caller's per-token tensors for one chunk, as attributes."""

    def __init__(self, fields: dict[str, Tensor]) -> None:
        self.__dict__.update(fields)

    def __getattr__(self, name: str) -> Tensor:
        if name.startswith("__"):
            raise AttributeError(name)
        given = ", ".join(self.__dict__) or "nothing"
        raise MissingFieldError(
            f"the loss function reads tok.{name}, but tokens= has {given}: add tokens={{{name!r}: "
            "...}"
        )


Fields = TypeVar("Fields", TokenStats, Tokens)


def pick(fields: Fields, rows: Tensor) -> Fields:
    """The same fields for the tokens `rows` of the chunk, detached copies."""
    # Not a method: any name may be a field of Tokens.
    return type(fields)({name: tensor.detach()[rows] for name, tensor in vars(fields).items()})


def zeros_like_stat(tensor: Tensor, tokens: int) -> Tensor:
    """Zeros for `tokens` tokens, with the dtype and trailing shape of a computed statistic."""
    return torch.zeros(tokens, *tensor.shape[1:], dtype=tensor.dtype, device=tensor.device)
