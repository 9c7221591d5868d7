"""Eager PyTorch: both models' full logits, as research code writes it."""

from bench.case import Case

TITLE = "eager PyTorch"


def unavailable() -> str | None:
    """Always there."""
    return None


def run(case: Case) -> float:
    """Forward and backward."""
    student_TV = (case.hidden_TD @ case.weight_VD.t()).log_softmax(-1)
    teacher_TV = (case.teacher_hidden_TD @ case.teacher_weight_VD.t()).log_softmax(-1)
    loss = (teacher_TV.exp() * (teacher_TV - student_TV)).sum()
    loss.backward()
    return loss.item()
