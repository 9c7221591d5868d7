"""EOPD: seek the teacher's mode, and cover its spread where it is unsure."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sdkernels.recipes.divergence import check_support, divergence, engine_keywords
from sdkernels.recipes.registry import Body, register
from sdkernels.recipes.settings import choice, flag, integer, number
from sdkernels.recipes.shielded import Shielded
from sdkernels.recipes.surrogate import old_logp_or_current, policy_ratio, sampled_gap


@register(
    "eopd",
    summary="KL(S||T), plus KL(T||S) on the teacher's top 16 where its entropy is above 0.8 nats",
    source="EOPD 2603.07079 (threshold .8, top-16; KL(S||T) from the sampled token, here over the "
    "full vocabulary, which the sample estimates). Weight 1, natural logarithms and the "
    "renormalised top-k are our reading",
    settings={
        "base": choice(
            "full",
            ("full", "sampled"),
            "KL(S||T) over the full vocabulary, or its policy gradient on the sampled token",
        ),
        "entropy_threshold": number(0.8, "teacher entropy from which it is unsure, nats", low=0.0),
        "cover_weight": number(1.0, "weight of KL(T||S) there", low=0.0),
        "topk": integer(16, "ids of the teacher that KL(T||S) compares, tokens", low=1),
        "tail": flag(
            False, "True: one more bucket holds the mass outside the top-k; False: renormalise"
        ),
    },
)
def eopd(
    *, base: str, entropy_threshold: float, cover_weight: float, topk: int, tail: bool
) -> Body:
    """loss = KL(S||T) + [H(T) > threshold] cover_weight KL(T||S) on the teacher's top-k."""
    check_support("eopd", topk, tail)

    def per_token(s: Any, tok: Any) -> Tensor:
        if base == "full":
            loss = s.kl_student_teacher
        else:
            old_logp = old_logp_or_current(s, tok)
            loss = -policy_ratio(s.logp, old_logp) * sampled_gap(s, old_logp)
        unsure = (s.teacher_entropy > entropy_threshold) & (cover_weight > 0.0)
        cover = divergence(Shielded(s, unsure), 0.0, "teacher_topk", tail)
        return loss + cover_weight * cover

    sampled = frozenset({"old_logp"}) if base == "sampled" else frozenset()
    return Body(
        per_token,
        needs=frozenset({"teacher"}) | sampled,
        optional=sampled,
        engine=engine_keywords(0.0, "teacher_topk", topk),
    )
