"""SRPO: policy gradient on what the verifier accepts, self-distillation on what it rejects."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdkernels.recipes.divergence import (
    check_support,
    divergence,
    engine_keywords,
    mixture_setting,
    support_settings,
)
from sdkernels.recipes.evidence import signal_or_all
from sdkernels.recipes.registry import ANCHORED, Body, register
from sdkernels.recipes.settings import choice, number
from sdkernels.recipes.shielded import Shielded
from sdkernels.recipes.surrogate import clip_settings, policy_loss, truncated_weight


@register(
    "srpo",
    summary="correct rollouts: group advantage; wrong ones: JSD, less where the teacher is unsure",
    source="SRPO 2604.02288; THU-BPM/RLCSD core_algos (SDPO branch, beta 1, one denominator). That "
    "code reads correctness off the sign of A, which sends all-correct groups to distillation "
    "(route=advantage), and normalises per micro-batch; here success decides, per batch",
    settings={
        "alpha": mixture_setting(0.5, "divergence"),
        **support_settings(tail=True),
        "entropy_beta": number(
            1.0, "wrong tokens weigh exp(-beta H(T)), normalised to mean 1; 0: all alike", low=0.0
        ),
        "route": choice(
            "success",
            ("success", "advantage"),
            "what counts as correct: the verdict, or A > 0 (so that A = 0 is distilled)",
        ),
        "is_clip": number(
            2.0,
            "upper bound of the importance weight S / S_old of distilled tokens; None: no weight",
            above=0.0,
            optional=True,
        ),
        **clip_settings(),
    },
)
def srpo(
    *,
    alpha: float,
    support: str,
    topk: int | None,
    tail: bool | None,
    entropy_beta: float,
    route: str,
    is_clip: float | None,
    **clip: Any,
) -> Body:
    """GRPO's surrogate where correct, else w min(S/S_old, is_clip) D(S, T).

    w = exp(-entropy_beta H(T)) over its mean in the batch (`tok.batch_mean`; not normalised
    without it). Distilled tokens whose teacher saw no context count as 0.
    """
    check_support("srpo", topk, tail)

    def is_correct(tok: Any) -> Tensor:
        return tok.success == 1 if route == "success" else tok.adv > 0

    def is_distilled(s: Any, tok: Any) -> Tensor:
        return ~is_correct(tok) & signal_or_all(tok, s.teacher_entropy)

    def certainty(s: Any, tok: Any) -> tuple[Tensor, Tensor]:
        return torch.exp(-entropy_beta * s.teacher_entropy), is_distilled(s, tok)

    def per_token(s: Any, tok: Any) -> Tensor:
        rewarded = policy_loss(s, tok, tok.adv, **clip)
        wrong = Shielded(s, is_distilled(s, tok))
        pulled = divergence(wrong, alpha, support, tail)
        if entropy_beta > 0:
            pulled = pulled * certainty(wrong, tok)[0]
            if hasattr(tok, "batch_mean"):
                pulled = pulled / torch.where(tok.batch_mean > 0, tok.batch_mean, 1.0)
        if is_clip is not None and hasattr(tok, "old_logp"):
            pulled = pulled * truncated_weight(wrong.logp, tok.old_logp, is_clip)
        return torch.where(is_correct(tok), rewarded, pulled)

    return Body(
        per_token,
        needs=ANCHORED,
        inputs=frozenset({"adv"} | ({"success"} if route == "success" else set())),
        optional=frozenset(
            {"old_logp", "signal"} | ({"batch_mean"} if entropy_beta > 0 else set())
        ),
        engine=engine_keywords(alpha, support, topk),
        batch_quantity=certainty if entropy_beta > 0 else None,
        anchored=True,
    )
