"""Liger `LigerFusedLinearJSDLoss`: chunks of 1024 (its default) and 4096 tokens, compiled (its
default) and not (as TRL called it). Beta 0 and 1 are KL(T||S) and KL(S||T) there.
"""

from __future__ import annotations

from torch import Tensor

from ..peer import Call, Peer, can_compile, first_of, importable
from ..problem import Problem

_installed = importable("liger_kernel.chunked_loss", "liger-kernel")
_BETAS = {"kl-teacher-student": 0.0, "kl-student-teacher": 1.0, "jsd": 0.5}


def _divergence(beta: float, chunk_tokens: int, compiled: bool) -> Call:
    def call(problem: Problem) -> Tensor:
        from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

        module = LigerFusedLinearJSDLoss(
            weight_hard_loss=0.0,
            # The sum instead of the mean. A product outside would make the upstream gradient
            # other than 1, for which Liger passes over the gradients once more.
            weight_soft_loss=float(problem.setting.tokens),
            beta=beta,
            compiled=compiled,
            chunk_size=chunk_tokens,
        )
        return module(
            problem.hidden_TD,
            problem.weight_VD,
            problem.teacher_hidden_TD,
            problem.teacher_weight_VD,
            problem.tokens.targets,
        )

    return call


PEERS = [
    Peer(
        f"liger-chunked-{chunk_tokens}" + ("-compiled" if compiled else ""),
        f"Liger chunked JSD, {chunk_tokens} rows" + (", compiled" if compiled else ""),
        {case: _divergence(beta, chunk_tokens, compiled) for case, beta in _BETAS.items()},
        first_of(can_compile, _installed) if compiled else _installed,
    )
    for chunk_tokens in (1024, 4096)
    for compiled in (False, True)
]
