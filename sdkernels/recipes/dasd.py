"""DASD: pull towards the teacher where the student is sure, push away where it is not."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sdkernels.gates import direction as tanh_direction
from sdkernels.recipes.divergence import divergence, mixture_setting
from sdkernels.recipes.registry import Body, register
from sdkernels.recipes.settings import choice, flag, number
from sdkernels.recipes.surrogate import (
    clip_settings,
    clipped_surrogate,
    old_logp_or_current,
    sampled_gap,
)


@register(
    "dasd",
    summary="verifier advantage plus a gap signal that an entropy gate turns into pull or push",
    source="DASD 2605.22263; no public code. Formula from a secondary note; beta, gap "
    "normalisation, guards and the full-vocabulary form are our reading (methods.md section 5)",
    settings={
        "form": choice(
            "advantage",
            ("advantage", "full_vocab"),
            "advantage: signal on the sampled token, added to the verifier's advantage; "
            "full_vocab: pull = full-vocabulary divergence, push = bounded JSD",
        ),
        "beta": number(
            0.2, "weight of the distillation signal (unpublished; sweep .1 to .5)", low=0.0
        ),
        "verifier_weight": number(1.0, "weight of the verifier's advantage; 0: none", low=0.0),
        "gap_clip": number(
            5.0,
            "bound of the normalised gap, typical gaps",
            above=0.0,
            when=("form", ("advantage",)),
        ),
        "alpha": mixture_setting(0.0, "pull divergence", when=("form", ("full_vocab",))),
        "push_cap": number(
            math.log(2.0),
            "bound of the pushed JSD, nats; beyond it no gradient",
            above=0.0,
            when=("form", ("full_vocab",)),
        ),
        "push_min_prob": number(
            1e-4, "no push where S(y) or T(y) is below this probability", low=0.0, high=1.0
        ),
        "push_all_fail": flag(
            True, "False: no push in groups without any success (needs tok.success)"
        ),
        **clip_settings(),
    },
)
def dasd(
    *,
    form: str,
    beta: float,
    verifier_weight: float,
    gap_clip: float | None,
    alpha: float | None,
    push_cap: float | None,
    push_min_prob: float,
    push_all_fail: bool,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> Body:
    """A policy gradient through GRPO's clipped surrogate; w in [-1, 1] is the gate's direction.

    Advantage form, with g = clip(gap / gap_scale, +-gap_clip), so that the teacher moves the
    advantage by at most beta gap_clip:

        A = verifier_weight adv + beta w sigmoid(|g| - 1) g

    Full-vocabulary form, with A = verifier_weight adv, adds to the surrogate

        beta w D(S, T)                    where w > 0
        beta w min(JSD(S, T), push_cap)   elsewhere

    w comes from `tok.tau` and `tok.sigma` where given, else from the `gate=` of `token_loss`.
    """
    min_logp = math.log(push_min_prob) if push_min_prob > 0 else -math.inf

    def guarded_direction(s: Any, tok: Any) -> Tensor:
        w = tanh_direction(s.entropy, tok.tau, tok.sigma) if hasattr(tok, "tau") else s.direction
        no_push = (s.logp < min_logp) | (s.teacher_logp < min_logp)
        if not push_all_fail:
            # A wrong rollout with advantage 0 belongs to a group in which all are wrong.
            no_push = no_push | ((tok.adv == 0) & (tok.success == 0))
        return w.masked_fill((w < 0) & no_push, 0.0)

    def per_token(s: Any, tok: Any) -> Tensor:
        w = guarded_direction(s, tok)
        adv = verifier_weight * tok.adv if verifier_weight else torch.zeros_like(w)
        if gap_clip is not None:  # the advantage form
            g = (sampled_gap(s, s.logp) / tok.gap_scale).clamp(-gap_clip, gap_clip)
            adv = adv + beta * w * torch.sigmoid(g.abs() - 1.0) * g
        loss = clipped_surrogate(
            s.logp,
            old_logp_or_current(s, tok),
            adv,
            clip_low=clip_low,
            clip_high=clip_high,
            dual_clip=dual_clip,
        )
        if alpha is not None:  # the full-vocabulary form
            push = s.jsd.clamp(max=push_cap)
            loss = loss + beta * w * torch.where(w > 0, divergence(s, alpha), push)
        return loss

    inputs = {"gap_scale"} if form == "advantage" else set()
    inputs |= {"adv"} if verifier_weight or not push_all_fail else set()
    inputs |= {"success"} if not push_all_fail else set()
    needs = {"teacher", "old_logp", "gate"} | ({"rewards", "group"} if "adv" in inputs else set())
    # The push needs a JSD even where the pull is one of the KLs.
    engine = {} if alpha is None else {"jsd_beta": 0.5 if alpha in (0.0, 1.0) else alpha}
    return Body(
        per_token,
        frozenset(needs),
        frozenset(inputs),
        engine,
        gates=("direction_adaptive", "entropy_sign"),
    )
