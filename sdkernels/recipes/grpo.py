"""GRPO: the verifier's group advantage through a clipped ratio; the no-context condition."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdkernels.recipes.registry import Body, register
from sdkernels.recipes.settings import choice, number
from sdkernels.recipes.surrogate import LOG_RATIO_LIMIT_NATS, clip_settings, policy_loss


@register(
    "grpo",
    summary="binary reward: clipped policy gradient on the group advantage, no teacher by default",
    source="GRPO 2402.03300; clip-higher 0.28 and no KL as in DAPO 2503.14476 and in SDPO's "
    "baseline (2601.20802 section 3); dual clip and log-ratio guard: verl core_algos",
    settings={
        **clip_settings(),
        "kl_weight": number(
            0.0, "weight of a penalty KL(S||T) to the teacher as reference model; 0: off", low=0.0
        ),
        "kl_form": choice(
            "exact",
            ("exact", "k3"),
            "exact: over the full vocabulary; k3: its estimate from the sampled token (GRPO eq. 4)",
        ),
    },
)
def grpo(*, kl_weight: float, kl_form: str, **clip: Any) -> Body:
    """loss = max(-rA, -clip(r)A), at most c|A| where A < 0, + kl_weight KL(S||T)."""

    def per_token(s: Any, tok: Any) -> Tensor:
        loss = policy_loss(s, tok, tok.adv, **clip)
        if kl_weight == 0.0:
            return loss
        penalty = s.kl_student_teacher if kl_form == "exact" else _k3(s)
        return loss + kl_weight * penalty

    needs = {"rewards", "group", "old_logp"} | ({"teacher"} if kl_weight else set())
    return Body(
        per_token,
        needs=frozenset(needs),
        inputs=frozenset({"adv"}),
        optional=frozenset({"old_logp"}),
        # The reference model answers the question that the student answers.
        context=("none", {}) if kl_weight else None,
    )


def _k3(s: Any) -> Tensor:
    """exp(d) - d - 1 with d = log T(y) - log S(y): unbiased for KL(S||T), never negative."""
    limit = LOG_RATIO_LIMIT_NATS
    gap = (s.teacher_logp - s.logp).clamp(-limit, limit)
    return torch.expm1(gap) - gap
