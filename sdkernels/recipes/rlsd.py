"""RLSD: the verifier says which way, the privileged teacher says how far for each token."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sdkernels.recipes.evidence import (
    decay_setting,
    linear_decay,
    shaped_advantage,
    strength_or_full,
    teacher_evidence,
)
from sdkernels.recipes.registry import ANCHORED, Body, register
from sdkernels.recipes.settings import choice, number
from sdkernels.recipes.surrogate import clip_settings, policy_loss


@register(
    "rlsd",
    summary="group advantage scaled by the clipped ratio T(y)/S(y), fading to GRPO in 50 steps",
    source="RLSD 2604.03128; THU-BPM/RLCSD core_algos `rlsd` (clip .2, lambda .5 to 0 over 50 "
    "steps, snapshot teacher every 10). The guards are ours: that code has none on the log-ratio",
    settings={
        "lam": number(0.5, "share of the advantage that the ratio scales", low=0.0, high=1.0),
        "decay_steps": decay_setting(50),
        "ratio_clip": number(0.2, "the ratio is held within 1 +- this", low=0.0, high=1.0),
        "evidence": choice(
            "current",
            ("current", "old"),
            "T(y) over the current S(y) (RLCSD's port) or over the one that sampled (CEPO's)",
        ),
        **clip_settings(),
    },
)
def rlsd(
    *, lam: float, decay_steps: int | None, ratio_clip: float, evidence: str, **clip: Any
) -> Body:
    """GRPO's surrogate with A ((1 - lam) + lam clip((T/S)^sign(A), 1 -+ ratio_clip))."""

    def per_token(s: Any, tok: Any) -> Tensor:
        adv = shaped_advantage(
            tok.adv,
            teacher_evidence(s, tok, evidence),
            lam * strength_or_full(tok),
            ratio_clip,
        )
        return policy_loss(s, tok, adv, **clip)

    return Body(
        per_token,
        needs=ANCHORED,
        inputs=frozenset({"adv"}),
        optional=frozenset({"old_logp", "signal", "strength"}),
        schedule=linear_decay(decay_steps),
        anchored=True,
    )
