"""RLRT: reward, in correct rollouts, what the teacher would not have said."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdkernels.recipes.evidence import shaped_advantage, strength_or_full, teacher_evidence
from sdkernels.recipes.registry import ANCHORED, Body, register
from sdkernels.recipes.settings import choice, number
from sdkernels.recipes.surrogate import clip_settings, policy_loss


@register(
    "rlrt",
    summary="group advantage of correct rollouts scaled by the clipped reversed ratio S(y)/T(y)",
    source="RLRT 2605.10781 (lambda .5; ratio clip 1.0 for base, .5 for instruct, .2 for thinking "
    "models; teacher context: a correct rollout). Formula from the paper's text",
    settings={
        "lam": number(0.5, "share of the advantage that the ratio scales", low=0.0, high=1.0),
        "ratio_clip": number(
            1.0,
            "the ratio is held within 1 +- this (paper: base 1, instruct .5, thinking .2)",
            low=0.0,
            high=1.0,
        ),
        "rollouts": choice(
            "correct",
            ("correct", "all"),
            "which rollouts are scaled; `all` is the paper's ablation, which diverges near step 40",
        ),
        **clip_settings(),
    },
)
def rlrt(*, lam: float, ratio_clip: float, rollouts: str, **clip: Any) -> Body:
    """GRPO's surrogate with A ((1 - lam) + lam clip((S/T)^sign(A), 1 -+ ratio_clip)).

    A is left as it is in rollouts that were not verified correct.
    """

    def per_token(s: Any, tok: Any) -> Tensor:
        shaped = shaped_advantage(
            tok.adv, -teacher_evidence(s, tok), lam * strength_or_full(tok), ratio_clip
        )
        adv = shaped if rollouts == "all" else torch.where(tok.success == 1, shaped, tok.adv)
        return policy_loss(s, tok, adv, **clip)

    return Body(
        per_token,
        needs=ANCHORED,
        inputs=frozenset({"adv"} if rollouts == "all" else {"adv", "success"}),
        optional=frozenset({"old_logp", "signal", "strength"}),
        anchored=True,
    )
