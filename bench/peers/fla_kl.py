"""flash-linear-attention `fused_kl_div_loss`: KL(T||S), mean over tokens."""

from __future__ import annotations

from torch import Tensor

from ..peer import Peer, first_of, importable, on_gpu
from ..problem import Problem


def _kl_teacher_student(problem: Problem) -> Tensor:
    from fla.modules.fused_kl_div import fused_kl_div_loss

    mean = fused_kl_div_loss(
        problem.hidden_TD,
        problem.teacher_hidden_TD,
        problem.weight_VD,
        problem.teacher_weight_VD,
        "batchmean",
    )
    return problem.setting.tokens * mean


PEERS = [
    Peer(
        "fla-kl",
        "FLA fused_kl_div_loss",
        {"kl-teacher-student": _kl_teacher_student},
        first_of(on_gpu, importable("fla.modules.fused_kl_div", "flash-linear-attention")),
    )
]
