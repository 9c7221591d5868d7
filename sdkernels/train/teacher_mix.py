"""The trust-region teacher of SDPO: a log-linear mix of two models, as one linear head.

Shape letters: N tokens, V vocabulary, D hidden of either model.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdkernels.engine import HiddenTeacher, LMHead


def mixed_teacher(
    reference: HiddenTeacher, student: HiddenTeacher, student_share: float
) -> HiddenTeacher:
    """q proportional to reference^(1 - a) student^a, a = `student_share` (SDPO 2601.20802; its code
    interpolates logits, which is the same).

    A mix of two linear heads' logits is one linear head on concatenated hidden states,
    ((1 - a) h_ref, a h_student) times (W_ref, W_student), so no logits have to exist. The
    concatenated weight costs the memory of both heads once more.

    Raises:
        ValueError: a head with a softcap, which is not linear, heads of different vocabularies, or
            a share that leaves only one of the two.
    """
    if not 0 < student_share < 1:
        raise ValueError(
            f"teacher_update_rate={student_share}: a trust-region teacher mixes both models, so it "
            "takes a share strictly between 0 and 1; 1 would be teacher_model_kind='live'"
        )
    parts = ((1.0 - student_share, reference), (student_share, student))
    for _, part in parts:
        if part.head.softcap is not None:
            raise ValueError(
                "teacher_model_kind='trust_region' mixes logits as one linear head, and this model "
                f"bends its logits by softcap={part.head.softcap}; use 'ema' instead"
            )
    if reference.head.vocab != student.head.vocab:
        raise ValueError(
            f"teacher_model_kind='trust_region': vocabularies of {reference.head.vocab} and "
            f"{student.head.vocab} entries; set valid_vocab"
        )
    factors = [share * part.head.scale for share, part in parts]
    hidden = torch.cat(
        [factor * part.hidden for factor, (_, part) in zip(factors, parts, strict=True)], dim=-1
    )
    vocab = reference.head.vocab
    weight = torch.cat([part.head.weight.detach()[:vocab] for _, part in parts], dim=1)
    return HiddenTeacher(hidden, LMHead(weight, bias=_bias(factors, parts, vocab)))


def _bias(
    factors: list[float], parts: tuple[tuple[float, HiddenTeacher], ...], vocab: int
) -> Tensor | None:
    biases = [
        factor * part.head.bias.detach()[:vocab]
        for factor, (_, part) in zip(factors, parts, strict=True)
        if part.head.bias is not None
    ]
    return sum(biases[1:], biases[0]) if biases else None
