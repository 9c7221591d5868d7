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
from sdkernels.recipes.registry import Body, register
from sdkernels.recipes.settings import number
from sdkernels.recipes.surrogate import sampled_gap, truncated_weight


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
    },
)
def sdpo(
    *,
    alpha: float,
    support: str,
    topk: int | None,
    tail: bool | None,
    is_clip: float | None,
) -> Body:
    """loss = min(S/S_old, is_clip) D(S, T), the weight a constant.

    On the sampled token D is the surrogate (log S(y) - log T(y)) log S(y), first factor a constant.
    Its gradient is that of KL(S||T) in expectation; its value means nothing.
    """
    check_support("sdpo", topk, tail)

    def per_token(s: Any, tok: Any) -> Tensor:
        if support == "sampled":
            loss = -sampled_gap(s, s.logp) * s.logp
        else:
            loss = divergence(s, alpha, support, tail)
        # On-policy the weight is 1: don't ask for targets that the divergence has no use for.
        if is_clip is None or not hasattr(tok, "old_logp"):
            return loss
        return truncated_weight(s.logp, tok.old_logp, is_clip) * loss

    needs = {"teacher"} | ({"old_logp"} if is_clip is not None else set())
    return Body(per_token, needs=frozenset(needs), engine=engine_keywords(alpha, support, topk))
