"""DASD: pull towards the teacher where the student is sure, push away where it is not."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from sdkernels.engine import topk as topk_lists
from sdkernels.gates import direction as tanh_direction
from sdkernels.recipes.divergence import divergence, mixture_setting
from sdkernels.recipes.evidence import signal_or_all
from sdkernels.recipes.registry import Body, register
from sdkernels.recipes.settings import Setting, choice, flag, integer, number
from sdkernels.recipes.surrogate import (
    LOG_RATIO_LIMIT_NATS,
    clip_settings,
    policy_loss,
    sampled_gap,
)

GAP_FORMS = ("advantage", "logit_level")


def _settings() -> dict[str, Setting]:
    return {
        "form": choice(
            "advantage",
            ("advantage", "full_vocab", "logit_level"),
            "advantage: signal on the sampled token, added to the verifier's advantage; "
            "full_vocab: pull = full-vocabulary divergence, push = bounded JSD; logit_level: "
            "clipped gaps of the student's top-k and the rest, as a policy gradient",
        ),
        "direction": choice(
            "gate",
            ("gate", "pull_low", "push_high", "pull", "push"),
            "gate: the entropy gate decides; pull_low, push_high: only what it pulls, only what it "
            "pushes; pull, push: all tokens alike (the token analysis)",
        ),
        "reliability": flag(
            True,
            "factor sigmoid(|gap| - 1) of w, gap of the sampled token, normalised; the source has "
            "it in the advantage form and is silent on the others, where True is our reading",
        ),
        "beta": number(
            0.2, "weight of the distillation signal (unpublished; sweep .1 to .5)", low=0.0
        ),
        "verifier_weight": number(1.0, "weight of the verifier's advantage; 0: none", low=0.0),
        "gap_clip": number(
            5.0,
            "bound of the normalised gap, typical gaps",
            above=0.0,
            when=("form", GAP_FORMS),
            or_when=("reliability", (True,)),
        ),
        "alpha": mixture_setting(0.0, "pull divergence", when=("form", ("full_vocab",))),
        "push_cap": number(
            math.log(2.0),
            "bound of the pushed JSD, nats; beyond it no gradient",
            above=0.0,
            when=("form", ("full_vocab",)),
        ),
        "topk": integer(100, "ids of the student, tokens", low=1, when=("form", ("logit_level",))),
        "push_min_prob": number(
            1e-4, "no push where S(y) or T(y) is below this probability", low=0.0, high=1.0
        ),
        "push_all_fail": flag(
            True, "False: no push in groups without any success (needs tok.success)"
        ),
        "push_ceiling": number(
            None,
            "no push in steps after the student's mean entropy rose above this multiple of its "
            "median in the first 5 (tok.strength); None: off",
            above=1.0,
            optional=True,
        ),
        **clip_settings(),
    }


@register(
    "dasd",
    summary="verifier advantage plus a gap signal that an entropy gate turns into pull or push",
    source="DASD 2605.22263; no public code. Formula from a secondary note; beta, gap "
    "normalisation, guards and the forms over the vocabulary, among them that these share the "
    "factor sigmoid(|gap| - 1) of the advantage form, are our reading",
    settings=_settings(),
)
def dasd(
    *,
    form: str,
    direction: str,
    reliability: bool,
    beta: float,
    verifier_weight: float,
    gap_clip: float | None,
    alpha: float | None,
    push_cap: float | None,
    topk: int | None,
    push_min_prob: float,
    push_all_fail: bool,
    push_ceiling: float | None,
    **clip: Any,
) -> Body:
    """A policy gradient through GRPO's clipped surrogate; d in [-1, 1] is the gate's direction.

    All forms share omega, a constant, with g = clip(gap / gap_scale, +-gap_clip) of the sampled
    token; without `reliability` omega is d:

        omega = d sigmoid(|g| - 1)

    In the advantage form the teacher moves the advantage by at most beta gap_clip:

        A = verifier_weight adv + beta omega g

    The other forms have A = verifier_weight adv and add to the surrogate

        beta omega D(S, T)                         full_vocab, omega > 0
        beta omega min(JSD(S, T), push_cap)        full_vocab, elsewhere
        -beta omega sum_v [S(v) g(v)] log S(v)     logit_level, [] a constant, v of the student's
                                                   top-k and one bucket for the rest

    d comes from `tok.tau` and `tok.sigma` where given, else from the `gate=` of `token_loss`; with
    `direction` "pull" and "push" it is 1 and -1, with "pull_low" and "push_high" its positive and
    its negative part. It is 0 where the teacher saw no context.
    """
    gated = direction in ("gate", "pull_low", "push_high")
    lowest = 0.0 if direction == "pull_low" else -1.0
    highest = 0.0 if direction == "push_high" else 1.0
    min_logp = math.log(push_min_prob) if push_min_prob > 0 else -math.inf

    def wanted_direction(s: Any, tok: Any) -> Tensor:
        if not gated:
            return torch.full_like(s.logp, 1.0 if direction == "pull" else -1.0).detach()
        d = tanh_direction(s.entropy, tok.tau, tok.sigma) if hasattr(tok, "tau") else s.direction
        return d.clamp(min=lowest, max=highest)

    def guarded_direction(s: Any, tok: Any) -> Tensor:
        w = wanted_direction(s, tok)
        no_push = (s.logp < min_logp) | (s.teacher_logp < min_logp)
        if not push_all_fail:
            # A wrong rollout with advantage 0 belongs to a group in which all are wrong.
            no_push = no_push | ((tok.adv == 0) & (tok.success == 0))
        if push_ceiling is not None and hasattr(tok, "strength"):
            no_push = no_push | (tok.strength == 0)
        return w.masked_fill(((w < 0) & no_push) | ~signal_or_all(tok, w), 0.0)

    def normalised(gap: Tensor, scale: Tensor) -> Tensor:
        assert gap_clip is not None
        return (gap / scale).clamp(-gap_clip, gap_clip)

    def sampled(s: Any, tok: Any) -> Tensor:
        return normalised(sampled_gap(s, s.logp), tok.gap_scale)

    def over_vocabulary(s: Any, tok: Any, omega: Tensor) -> Tensor:
        """What the forms over the vocabulary add to the surrogate, before beta."""
        if form == "full_vocab":
            assert alpha is not None
            moved = torch.where(omega > 0, divergence(s, alpha), s.jsd.clamp(max=push_cap))
            return omega * moved
        student = topk_lists.buckets(s.topk_logp, tail=True)
        teacher = topk_lists.buckets(s.teacher_topk_logp, tail=True)
        limit = LOG_RATIO_LIMIT_NATS
        gap = (teacher - student).detach().nan_to_num(0.0).clamp(-limit, limit)
        mass = student.detach().exp() * normalised(gap, tok.gap_scale.unsqueeze(-1))
        # A banned id has mass 0 and log-prob -inf.
        terms = torch.where(mass == 0, 0.0, mass * student.clamp(min=-1e4))
        return -omega * terms.sum(-1)

    def per_token(s: Any, tok: Any) -> Tensor:
        omega = guarded_direction(s, tok)
        if reliability:
            omega = omega * torch.sigmoid(sampled(s, tok).abs() - 1.0)
        adv = verifier_weight * tok.adv if verifier_weight else torch.zeros_like(omega)
        if form == "advantage":
            adv = adv + beta * omega * sampled(s, tok)
        loss = policy_loss(s, tok, adv, **clip)
        if form == "advantage" or beta == 0.0:
            return loss
        return loss + beta * over_vocabulary(s, tok, omega)

    inputs = {"gap_scale"} if reliability or form in GAP_FORMS else set()
    inputs |= {"adv"} if verifier_weight or not push_all_fail else set()
    inputs |= {"success"} if not push_all_fail else set()
    needs = {"teacher", "old_logp"} | ({"gate"} if gated else set())
    # The push needs a JSD even where the pull is one of the KLs.
    engine: dict[str, Any] = {"topk": topk, "topk_of": "student"} if topk is not None else {}
    if alpha is not None:
        engine = {"jsd_beta": 0.5 if alpha in (0.0, 1.0) else alpha}
    return Body(
        per_token,
        frozenset(needs | ({"rewards", "group"} if "adv" in inputs else set())),
        frozenset(inputs),
        engine,
        optional=frozenset(
            {"old_logp", "signal"} | ({"strength"} if push_ceiling is not None else set())
        ),
        anchored=verifier_weight > 0,
        gates=("direction_adaptive", "entropy_sign") if gated else (),
        direction=guarded_direction,
        entropy_ceiling=push_ceiling,
    )
