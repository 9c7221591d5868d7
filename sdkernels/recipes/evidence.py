"""Advantages shaped by evidence: how much more one model likes the sampled token than another.

RLSD, RLRT, CEPO and RLCSD leave the sign of the verifier's advantage alone and let a log-ratio of
two models decide how much of it a token gets. Everything here is a constant for the gradient.

Shape letter: C tokens of a chunk. All log-probs are those of the sampled token, in nats.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdkernels.recipes.settings import Setting, integer
from sdkernels.recipes.surrogate import LOG_RATIO_LIMIT_NATS, old_logp_or_current, sampled_gap


def signal_or_all(tok: Any, like: Tensor) -> Tensor:
    """`tok.signal` as a bool `[C]`: where the teacher saw a context; without it: everywhere."""
    if hasattr(tok, "signal"):
        return tok.signal != 0
    return torch.ones_like(like, dtype=torch.bool)


def strength_or_full(tok: Any) -> Tensor | float:
    """`tok.strength` `[C]`, the factor of this step's schedule or gate; without it: 1."""
    strength: Tensor | float = tok.strength if hasattr(tok, "strength") else 1.0
    return strength


def teacher_evidence(s: Any, tok: Any, reference: str = "current") -> Tensor:
    """log T(y) - log S(y) `[C]`, within +-20 nats; 0 where the teacher saw no context.

    `reference`: "current" compares with the policy as it is, "old" with the one that sampled.
    """
    logp = s.logp if reference == "current" else old_logp_or_current(s, tok)
    return torch.where(signal_or_all(tok, s.logp), sampled_gap(s, logp), 0.0)


def has_contrast(tok: Any) -> Tensor:
    """Where there is a second teacher to compare with, bool `[C]`.

    A sequence without one carries NaN, or -inf, the logarithm of a mean over nothing.
    """
    second = tok.second_teacher_logp
    return signal_or_all(tok, second) & torch.isfinite(second)


def contrast_evidence(s: Any, tok: Any) -> Tensor:
    """log T+(y) - log T-(y) `[C]`, a constant within +-20 nats; 0 where `has_contrast` is not."""
    limit = LOG_RATIO_LIMIT_NATS
    there = has_contrast(tok)
    second = torch.where(there, tok.second_teacher_logp, 0.0)
    return torch.where(there, (s.teacher_logp - second).clamp(-limit, limit), 0.0)


def shaped_advantage(adv: Tensor, evidence: Tensor, lam: Tensor | float, clip: float) -> Tensor:
    """adv ((1 - lam) + lam clip(exp(sign(adv) evidence), 1 - clip, 1 + clip)) `[C]`.

    With positive evidence a good token of a good rollout gets more of the credit, and a good token
    of a bad rollout less of the blame. The sign of `adv` never changes, as lam and clip are at
    most 1.
    """
    weight = torch.exp(adv.sign() * evidence).clamp(1.0 - clip, 1.0 + clip)
    return adv * ((1.0 - lam) + lam * weight)


def decay_setting(default: int) -> Setting:
    """Setting `decay_steps` of a linear schedule to 0."""
    return integer(
        default,
        "optimiser steps over which lam falls to 0 in a line (recipe.schedule(step), which a "
        "trainer hands over as tokens['strength']); None: constant",
        low=1,
        optional=True,
    )


def linear_decay(decay_steps: int | None) -> Callable[[int], float] | None:
    """step (0 at the start) -> factor of lam: 1 at step 0, 0 from `decay_steps` on."""
    if decay_steps is None:
        return None
    return lambda step: max(0.0, 1.0 - step / decay_steps)
