"""`torch.compile` of a loop over chunks of 1024 tokens, each with its own backward pass: what a
user who knows PyTorch well writes by hand.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from ..cases import CASES
from ..formulas import chosen, entropy
from ..peer import Call, Peer, can_compile
from ..problem import Problem
from ..tokens import Tokens

CHUNK_TOKENS = 1024


@lru_cache
def _compiled(case: str) -> Callable[..., Any]:
    """One chunk: the summed loss, or the outputs of the forward-only case."""
    formula, backward = CASES[case].formula, CASES[case].backward

    def chunk(
        hidden_CD: Tensor,
        weight_VD: Tensor,
        teacher_CD: Tensor | None,
        teacher_VD: Tensor | None,
        tok: dict[str, Tensor],
    ) -> Tensor | tuple[Tensor, Tensor]:
        tokens = Tokens(**tok)
        student_CV = (hidden_CD @ weight_VD.t()).float().log_softmax(-1)
        if not backward:
            return chosen(student_CV, tokens), entropy(student_CV)
        teacher_CV = None
        if teacher_CD is not None and teacher_VD is not None:
            teacher_CV = (teacher_CD @ teacher_VD.t()).float().log_softmax(-1)
        return formula(student_CV, teacher_CV, tokens).sum()

    return torch.compile(chunk, dynamic=False)


def _call(problem: Problem) -> Tensor | tuple[Tensor, Tensor]:
    """Each chunk's hidden states are a leaf of their own: the gradient of a slice of the whole
    would be a tensor of all tokens, zero elsewhere, once a chunk.
    """
    chunk = _compiled(problem.setting.case.name)
    backward, hidden_TD = problem.setting.case.backward, problem.hidden_TD.detach()
    grad_TD = torch.empty_like(hidden_TD) if backward else None
    found = []
    for lo in range(0, problem.setting.tokens, CHUNK_TOKENS):
        rows = slice(lo, lo + CHUNK_TOKENS)
        teacher_TD = problem.teacher_hidden_TD
        hidden_CD = hidden_TD[rows].requires_grad_(backward)
        result = chunk(
            hidden_CD,
            problem.weight_VD,
            None if teacher_TD is None else teacher_TD[rows],
            problem.teacher_weight_VD,
            dict(problem.tokens.rows(lo, lo + CHUNK_TOKENS).items()),
        )
        if grad_TD is not None:
            result.backward()
            assert hidden_CD.grad is not None
            grad_TD[rows] = hidden_CD.grad
            result = result.detach()
        found.append(result)
    if grad_TD is not None:
        problem.hidden_TD.grad = grad_TD
        return torch.stack(found).sum()
    logps, entropies = zip(*found, strict=True)
    return torch.cat(logps), torch.cat(entropies)


_CALLS: dict[str, Call] = dict.fromkeys(CASES, _call)

PEERS = [
    Peer(
        "compiled-chunks",
        f"torch.compile, chunks of {CHUNK_TOKENS}",
        _CALLS,
        unavailable=can_compile,
    )
]
