"""SDPO: match the re-prompted teacher on the student's own rollouts."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sdkernels.recipes.divergence import (
    SUPPORTS,
    check_support,
    divergence,
    engine_keywords,
    mixture_setting,
    support_settings,
)
from sdkernels.recipes.evidence import signal_or_all
from sdkernels.recipes.registry import ANCHORED, Body, register
from sdkernels.recipes.settings import Above, number
from sdkernels.recipes.shielded import Shielded
from sdkernels.recipes.surrogate import (
    LOG_RATIO_LIMIT_NATS,
    clip_settings,
    policy_loss,
    sampled_gap,
    truncated_weight,
)


@register(
    "sdpo",
    summary="JSD to the re-prompted teacher, importance weight clipped at 2",
    source="SDPO 2601.20802 eq. 1, tables 12 and 13; lasgroup/SDPO core_algos "
    "compute_self_distillation_loss (alpha .5, student top-100 + tail; here the full vocabulary, "
    "which that top-k stands in for)",
    settings={
        "alpha": mixture_setting(0.5, "divergence", when=("support", SUPPORTS), otherwise=1.0),
        **support_settings(sampled=True, tail=True),
        "is_clip": number(
            2.0,
            "upper bound of the importance weight S / S_old of the sampled token; None: no weight",
            above=0.0,
            optional=True,
        ),
        "gap_clip": number(
            LOG_RATIO_LIMIT_NATS,
            "bound of |log T(y) - log S(y)|, nats (5 in the test-time setting)",
            above=0.0,
            high=LOG_RATIO_LIMIT_NATS,
            when=("support", ("sampled",)),
        ),
        "grpo_weight": number(
            0.0,
            "hybrid: this much of GRPO's surrogate and 1 - this of the distillation (paper: .9; "
            "helps 0.6B, hurts 8B slightly)",
            low=0.0,
            high=1.0,
        ),
        **clip_settings(when=("grpo_weight", Above(0.0))),
    },
)
def sdpo(
    *,
    alpha: float,
    support: str,
    topk: int | None,
    tail: bool | None,
    is_clip: float | None,
    gap_clip: float | None,
    grpo_weight: float,
    **clip: Any,
) -> Body:
    """loss = min(S/S_old, is_clip) D(S, T), the weight a constant.

    The hybrid is grpo_weight * GRPO's surrogate + (1 - grpo_weight) * that; `clip_low`, `clip_high`
    and `dual_clip` are the surrogate's.

    On the sampled token D is the surrogate (log S(y) - log T(y)) log S(y), first factor a constant.
    Its gradient is that of KL(S||T) in expectation; its value means nothing.
    """
    check_support("sdpo", topk, tail)

    def distilled(s: Any, tok: Any) -> Tensor:
        if support == "sampled":
            assert gap_clip is not None
            loss = -sampled_gap(s, s.logp, gap_clip) * s.logp
        else:
            loss = divergence(s, alpha, support, tail)
        # On-policy the weight is 1: don't ask for targets that the divergence has no use for.
        if is_clip is None or not hasattr(tok, "old_logp"):
            return loss
        return truncated_weight(s.logp, tok.old_logp, is_clip) * loss

    def hybrid(s: Any, tok: Any) -> Tensor:
        rewarded = policy_loss(s, tok, tok.adv, **clip)
        counts = signal_or_all(tok, rewarded) & (grpo_weight < 1.0)
        pulled = distilled(Shielded(s, counts), tok)
        return grpo_weight * rewarded + (1.0 - grpo_weight) * pulled

    engine = engine_keywords(alpha, support, topk)
    if grpo_weight == 0.0:
        old = frozenset({"old_logp"} if is_clip is not None else set())
        return Body(distilled, frozenset({"teacher"}) | old, engine=engine, optional=old)
    return Body(
        hybrid,
        needs=ANCHORED,
        inputs=frozenset({"adv"}),
        optional=frozenset({"old_logp", "signal"}),
        engine=engine,
        anchored=True,
    )
