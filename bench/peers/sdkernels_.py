"""sdkernels: `linear_divergence` with the sum formed in the forward pass, default byte budget."""

import sdkernels as sd
from bench.case import Case

TITLE = "sdkernels"


def unavailable() -> str | None:
    """Always there."""
    return None


def run(case: Case) -> float:
    """Forward and backward."""
    teacher = sd.HiddenTeacher(case.teacher_hidden_TD, case.teacher_weight_VD)
    loss = sd.linear_divergence(
        case.hidden_TD, case.weight_VD, teacher, "kl_teacher_student", reduction="sum"
    )
    loss.backward()
    return loss.item()
