"""The losses of TRL's `SDPOTrainer` and `GKDTrainer`, over whole logits as those trainers make
them.
"""

from __future__ import annotations

from torch import Tensor

from ..formulas import TOPK
from ..peer import Call, Peer, importable
from ..problem import Problem

_BETAS = {"kl-teacher-student": 0.0, "kl-student-teacher": 1.0, "jsd": 0.5}


def _logits(problem: Problem) -> tuple[Tensor, Tensor]:
    assert problem.teacher_hidden_TD is not None
    assert problem.teacher_weight_VD is not None
    student_TV = problem.hidden_TD @ problem.weight_VD.t()
    return student_TV, problem.teacher_hidden_TD @ problem.teacher_weight_VD.t()


def _gkd(beta: float) -> Call:
    def call(problem: Problem) -> Tensor:
        from trl.experimental.gkd import GKDTrainer

        student_TV, teacher_TV = _logits(problem)
        return GKDTrainer.generalized_jsd_loss(student_TV, teacher_TV, beta=beta, reduction="sum")

    return call


def _sdpo_topk(problem: Problem) -> Tensor:
    from trl.experimental.sdpo.loss_utils import compute_topk_self_distillation_loss

    student_TV, teacher_TV = _logits(problem)
    return compute_topk_self_distillation_loss(
        student_TV,
        teacher_TV,
        distillation_topk=TOPK,
        distillation_alpha=0.5,
        distillation_add_tail=True,
    ).sum()


PEERS = [
    Peer(
        "trl-gkd",
        "TRL GKDTrainer's loss",
        {case: _gkd(beta) for case, beta in _BETAS.items()},
        importable("trl.experimental.gkd", "trl"),
        logits_copies=8.0,
    ),
    Peer(
        "trl-sdpo",
        "TRL SDPOTrainer's top-k loss",
        {"sdpo-topk": _sdpo_topk},
        importable("trl.experimental.sdpo.loss_utils", "trl"),
        logits_copies=4.0,
    ),
]
