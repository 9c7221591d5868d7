"""The cases: what is computed, and how many matrix products it takes at least."""

from __future__ import annotations

from dataclasses import dataclass

from . import formulas
from .formulas import Formula
from .names import pick


@dataclass(frozen=True)
class Case:
    """One loss, summed over all tokens, with gradients for hidden states and (unless frozen) head.

    Attributes:
        formula: per-token loss over log-softmaxes.
        teacher: whether it has one.
        backward: False: values only, no gradient (the case returns log-probs and entropies).
        adv_scale: standard deviation of the advantages.
    """

    name: str
    title: str
    formula: Formula
    teacher: bool
    backward: bool = True
    adv_scale: float = 1.0

    def products(self, *, frozen: bool) -> int:
        """Products of T x D x V multiplications that nobody can do without: logits of each model,
        gradient of the hidden states, gradient of the head.
        """
        logits = 2 if self.teacher else 1
        return logits + (0 if not self.backward else 1 if frozen else 2)


CASES = {
    case.name: case
    for case in (
        Case(
            "logprob-entropy-forward",
            "log-prob and entropy, forward only",
            formulas.weighted_logprob_and_entropy,
            teacher=False,
            backward=False,
        ),
        Case(
            "logprob-entropy",
            "log-prob and entropy, both differentiable",
            formulas.weighted_logprob_and_entropy,
            teacher=False,
        ),
        Case("nll", "negative log-likelihood", formulas.nll, teacher=False),
        Case("kl-teacher-student", "KL(T||S)", formulas.kl_teacher_student, teacher=True),
        Case("kl-student-teacher", "KL(S||T)", formulas.kl_student_teacher, teacher=True),
        Case("jsd", "JSD, equal shares", formulas.jsd, teacher=True),
        Case("grpo", "GRPO: clipped policy gradient", formulas.grpo, teacher=False),
        Case("sdpo-topk", "SDPO: JSD on top 100 ids and a tail", formulas.sdpo_topk, teacher=True),
        Case(
            "dasd",
            "DASD: entropy-gated pull and push",
            formulas.dasd,
            teacher=True,
            # With advantages near 1 the divergence is less than a hundredth of the gradient, and a
            # peer that leaves it out looks like rounding.
            adv_scale=0.005,
        ),
    )
}


def get(name: str) -> Case:
    """The case called `name`; a wrong name is a ValueError that suggests the nearest."""
    return CASES[pick("case", name, CASES)]
