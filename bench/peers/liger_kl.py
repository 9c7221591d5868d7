"""Liger `LigerFusedLinearKLDivLoss`: the caller makes the teacher's probabilities, [T, V]. That is
part of the work here, since the case starts from hidden states.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..peer import Peer, first_of, importable, on_gpu
from ..problem import Problem


def _kl_teacher_student(problem: Problem) -> Tensor:
    from liger_kernel.transformers.fused_linear_kl_div import LigerFusedLinearKLDivLoss

    assert problem.teacher_hidden_TD is not None
    assert problem.teacher_weight_VD is not None
    with torch.no_grad():
        teacher_TV = problem.teacher_hidden_TD @ problem.teacher_weight_VD.t()
        teacher_TV = teacher_TV.float().softmax(-1)
    return LigerFusedLinearKLDivLoss(reduction="sum")(
        problem.hidden_TD, problem.weight_VD, teacher_TV
    )


PEERS = [
    Peer(
        "liger-kl",
        "Liger FusedLinearKLDiv",
        {"kl-teacher-student": _kl_teacher_student},
        first_of(on_gpu, importable("liger_kernel.transformers", "liger-kernel")),
        logits_copies=2.0,
    )
]
