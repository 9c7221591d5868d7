"""ROSD: match a teacher that reflected on the attempt, from the first error on."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sdkernels.recipes.divergence import (
    check_support,
    divergence,
    engine_keywords,
    mixture_setting,
    support_settings,
)
from sdkernels.recipes.registry import Body, register
from sdkernels.recipes.settings import flag, number
from sdkernels.recipes.shielded import Shielded
from sdkernels.recipes.surrogate import truncated_weight


@register(
    "rosd",
    summary="JSD to a teacher with a reflection, on wrong rollouts from the quoted error on",
    source="ROSD 2605.28014; ZiqiZhao1/ROSD on SDPO (alpha .5, student top-100 + tail, importance "
    "clip 2, frozen teacher; here the full vocabulary, which that top-k stands in for). Groups "
    "without a success are skipped; a quote that is not found keeps the whole response, as there",
    settings={
        "alpha": mixture_setting(0.5, "divergence"),
        **support_settings(tail=True),
        "is_clip": number(
            2.0,
            "upper bound of the importance weight S / S_old of the sampled token; None: no weight",
            above=0.0,
            optional=True,
        ),
        "localise": flag(
            True, "leave out what stands before the error; False: the paper's ablation"
        ),
        "skip_failed_groups": flag(True, "leave out groups without any success (by the trainer)"),
    },
)
def rosd(
    *,
    alpha: float,
    support: str,
    topk: int | None,
    tail: bool | None,
    is_clip: float | None,
    localise: bool,
    skip_failed_groups: bool,
) -> Body:
    """loss = m min(S/S_old, is_clip) D(S, T), m = 0 before the error of a wrong rollout.

    m is `tok.suffix`; a trainer may as well leave those tokens out of its mask, so that they don't
    count in the mean either, which is what the source does.
    """
    check_support("rosd", topk, tail)

    def per_token(s: Any, tok: Any) -> Tensor:
        if localise and hasattr(tok, "suffix"):
            s = Shielded(s, tok.suffix != 0)
        loss = divergence(s, alpha, support, tail)
        if is_clip is not None and hasattr(tok, "old_logp"):
            loss = truncated_weight(s.logp, tok.old_logp, is_clip) * loss
        return loss

    weighted = frozenset({"old_logp"} if is_clip is not None else set())
    judged = frozenset({"rewards", "group"} if skip_failed_groups else set())
    return Body(
        per_token,
        needs=frozenset({"teacher"}) | judged | weighted,
        optional=weighted | ({"suffix"} if localise else set()),
        engine=engine_keywords(alpha, support, topk),
        skips_failed_groups=skip_failed_groups,
        context=("self_reflection", {} if skip_failed_groups else {"need_success": False}),
    )
