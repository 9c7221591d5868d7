"""OPSD: match a teacher that has seen the reference solution, each vocabulary entry clipped."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sdkernels.recipes.divergence import (
    SUPPORTS,
    TOPK,
    check_support,
    clipped_kl,
    divergence,
    engine_keywords,
    mixture_setting,
    support_settings,
)
from sdkernels.recipes.registry import Body, register
from sdkernels.recipes.settings import number
from sdkernels.recipes.surrogate import sampled_gap


@register(
    "opsd",
    summary="KL(T||S) with each vocabulary entry clipped at 0.05 nats, at temperature 1.1",
    source="OPSD 2601.18734 v3; siyan-zhao/OPSD opsd_trainer.py (beta 0, clip .05, logits / 1.1; "
    "v1 had beta .5 without clip; top-k there is the teacher's, renormalised)",
    settings={
        "beta": mixture_setting(0.0, "divergence", when=("support", SUPPORTS), otherwise=1.0),
        "entry_clip": number(
            0.05,
            "upper bound of T log(T/S) per vocabulary entry, nats; negative entries stay, so the "
            "loss can be negative: watch kl_teacher_student; None: off",
            above=0.0,
            optional=True,
            when=("beta", (0.0,)),
        ),
        "temperature": number(1.1, "divides the logits of both models", above=0.0),
        "teacher_temperature": number(
            None,
            "divides the teacher's logits instead; None: as the student's (verl's port: 1.0)",
            above=0.0,
            optional=True,
        ),
        **support_settings(sampled=True, tail=False),
    },
)
def opsd(
    *,
    beta: float,
    entry_clip: float | None,
    temperature: float,
    teacher_temperature: float | None,
    support: str,
    topk: int | None,
    tail: bool | None,
) -> Body:
    """loss = sum_v min(T log(T/S), clip), or the divergence that `beta` picks.

    On the sampled token it is the policy gradient -(log T(y) - log S(y)) log S(y), first factor a
    constant, whose gradient is that of KL(S||T) in expectation.
    """
    check_support("opsd", topk, tail)

    def per_token(s: Any, tok: Any) -> Tensor:
        if support == "sampled":
            return -sampled_gap(s, s.logp) * s.logp
        if entry_clip is None:
            return divergence(s, beta, support, tail)
        return clipped_kl(s, entry_clip, support, tail)

    engine = {"temperature": temperature, **engine_keywords(beta, support, topk)}
    if teacher_temperature is not None:
        engine["teacher_temperature"] = teacher_temperature
    if entry_clip is not None and support not in TOPK:
        engine["entry_clip"] = entry_clip
    return Body(per_token, needs=frozenset({"teacher"}), engine=engine)
