"""Eager PyTorch over whole logits, as research code writes it."""

from __future__ import annotations

from torch import Tensor

from ..cases import CASES
from ..formulas import chosen, entropy
from ..peer import Call, Peer
from ..problem import Problem


def log_softmaxes(problem: Problem) -> tuple[Tensor, Tensor | None]:
    """Of student and teacher, [T, V] in float32."""
    student_TV = (problem.hidden_TD @ problem.weight_VD.t()).float().log_softmax(-1)
    if problem.teacher_hidden_TD is None or problem.teacher_weight_VD is None:
        return student_TV, None
    teacher_TV = (problem.teacher_hidden_TD @ problem.teacher_weight_VD.t()).float()
    return student_TV, teacher_TV.log_softmax(-1)


def _outputs(problem: Problem) -> tuple[Tensor, Tensor]:
    student_TV, _ = log_softmaxes(problem)
    return chosen(student_TV, problem.tokens), entropy(student_TV)


def _loss(problem: Problem) -> Tensor:
    return problem.setting.case.formula(*log_softmaxes(problem), problem.tokens).sum()


_CALLS: dict[str, Call] = {
    name: _loss if case.backward else _outputs for name, case in CASES.items()
}

PEERS = [Peer("eager", "eager PyTorch", _CALLS, logits_copies=6.0)]
