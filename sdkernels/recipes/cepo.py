"""CEPO: credit by contrast, right answer against a rejected one."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sdkernels.recipes.evidence import (
    contrast_evidence,
    decay_setting,
    linear_decay,
    shaped_advantage,
    strength_or_full,
)
from sdkernels.recipes.registry import ANCHORED, Body, register
from sdkernels.recipes.settings import number
from sdkernels.recipes.surrogate import clip_settings, policy_loss


@register(
    "cepo",
    summary="group advantage scaled by the clipped ratio of two teachers, right and wrong answer",
    source="CEPO 2605.19436; ahmedheakl/CEPO (clip .5, lambda .5 to 0 over 25 steps, live actor as "
    "teacher, log-ratio within +-20)",
    settings={
        "lam": number(0.5, "share of the advantage that the ratio scales", low=0.0, high=1.0),
        "decay_steps": decay_setting(25),
        "ratio_clip": number(0.5, "the ratio is held within 1 +- this", low=0.0, high=1.0),
        **clip_settings(),
    },
)
def cepo(*, lam: float, decay_steps: int | None, ratio_clip: float, **clip: Any) -> Body:
    """GRPO's surrogate with A ((1 - lam) + lam clip((T+/T-)^sign(A), 1 -+ ratio_clip)).

    T+ is the teacher that saw the right answer, T- (`tok.second_teacher_logp`) the one that saw a
    rejected rollout's. Sequences without a rejected answer keep A.
    """

    def per_token(s: Any, tok: Any) -> Tensor:
        adv = shaped_advantage(
            tok.adv, contrast_evidence(s, tok), lam * strength_or_full(tok), ratio_clip
        )
        return policy_loss(s, tok, adv, **clip)

    return Body(
        per_token,
        needs=ANCHORED,
        inputs=frozenset({"adv", "second_teacher_logp"}),
        optional=frozenset({"old_logp", "signal", "strength"}),
        schedule=linear_decay(decay_steps),
        anchored=True,
        context=("contrastive", {"show": "answer", "negatives": 1}),
    )
