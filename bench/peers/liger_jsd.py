"""Liger `LigerFusedLinearJSD`, its Triton kernel; beta 0 and 1 are KL(T||S) and KL(S||T) there."""

from __future__ import annotations

import torch
from torch import Tensor

from ..peer import Call, Peer, first_of, importable, on_gpu
from ..problem import Problem

_BETAS = {"kl-teacher-student": 0.0, "kl-student-teacher": 1.0, "jsd": 0.5}


def _divergence(beta: float, accumulate: torch.dtype | None) -> Call:
    def call(problem: Problem) -> Tensor:
        from liger_kernel.transformers import LigerFusedLinearJSD

        mean = LigerFusedLinearJSD(jsd_beta=beta, accum_dtype=accumulate)(
            problem.hidden_TD,
            problem.weight_VD,
            problem.teacher_hidden_TD,
            problem.teacher_weight_VD,
            None,
        )
        return problem.setting.tokens * mean

    return call


PEERS = [
    Peer(
        "liger-jsd" + suffix,
        "Liger FusedLinearJSD" + note,
        {case: _divergence(beta, accumulate) for case, beta in _BETAS.items()},
        first_of(on_gpu, importable("liger_kernel.transformers", "liger-kernel")),
    )
    for suffix, note, accumulate in (
        ("", "", None),
        ("-fp32", ", float32 sums", torch.float32),
    )
]
