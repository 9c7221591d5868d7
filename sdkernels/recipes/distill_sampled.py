"""Distillation as a policy gradient on the sampled token."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sdkernels.recipes.registry import Body, register
from sdkernels.recipes.settings import number
from sdkernels.recipes.surrogate import (
    LOG_RATIO_LIMIT_NATS,
    old_logp_or_current,
    policy_ratio,
    sampled_gap,
)


@register(
    "distill_sampled",
    summary="policy gradient with the teacher-student gap of the sampled token as advantage",
    source="Thinking Machines, On-Policy Distillation; tinker_cookbook/distillation/"
    "train_on_policy.py (discount 0, importance-sampling loss). The gap's bound is ours: "
    "the source has none",
    settings={
        "coef": number(1.0, "factor of the advantage", low=0.0),
        "gap_clip": number(
            LOG_RATIO_LIMIT_NATS,
            "bound of |log T(y) - log S(y)|, nats (5 in SDPO's test-time setting)",
            above=0.0,
            high=LOG_RATIO_LIMIT_NATS,
        ),
    },
)
def distill_sampled(*, coef: float, gap_clip: float) -> Body:
    """loss = -(S/S_old) A, A = coef (log T(y) - log S_old(y)), a constant."""

    def per_token(s: Any, tok: Any) -> Tensor:
        old_logp = old_logp_or_current(s, tok)
        adv = coef * sampled_gap(s, old_logp, gap_clip)
        return -policy_ratio(s.logp, old_logp) * adv

    return Body(
        per_token, needs=frozenset({"teacher", "old_logp"}), optional=frozenset({"old_logp"})
    )
