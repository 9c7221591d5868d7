"""Policy-gradient terms: ratios to the sampling policy, their clips, the sampled token's gap.

Shape letter: C tokens of a chunk. All log-probs are those of the sampled token, in nats.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdkernels.recipes.settings import Setting, When, number

LOG_RATIO_LIMIT_NATS = 20.0


def clip_settings(when: When | None = None) -> dict[str, Setting]:
    """Settings of the PPO clip, shared by the recipes that use it."""
    return {
        "clip_low": number(0.2, "ratio clip below 1, PPO", low=0.0, high=1.0, when=when),
        "clip_high": number(0.28, "ratio clip above 1, DAPO's clip-higher", low=0.0, when=when),
        "dual_clip": number(
            3.0,
            "bound of the ratio where the advantage is negative (verl clip_ratio_c); None: off",
            above=1.0,
            optional=True,
            when=when,
        ),
    }


def old_logp_or_current(s: Any, tok: Any) -> Tensor:
    """Log-prob under the policy that sampled `[C]`; the current one without `tok.old_logp`."""
    return tok.old_logp if hasattr(tok, "old_logp") else s.logp.detach()


def policy_ratio(logp: Tensor, old_logp: Tensor) -> Tensor:
    """S(y) / S_old(y) `[C]`, its logarithm held within +-20 (verl); differentiable in `logp`."""
    limit = LOG_RATIO_LIMIT_NATS
    return (logp - old_logp).clamp(-limit, limit).exp()


def truncated_weight(logp: Tensor, old_logp: Tensor, maximum: float) -> Tensor:
    """Importance weight min(S / S_old, maximum) `[C]`, a constant; not clipped from below."""
    return policy_ratio(logp.detach(), old_logp).clamp(max=maximum)


def sampled_gap(s: Any, reference_logp: Tensor, limit: float = LOG_RATIO_LIMIT_NATS) -> Tensor:
    """log T(y) - log S(y) `[C]`, a constant, within +-`limit` nats; positive: T likes y more."""
    return (s.teacher_logp - reference_logp).detach().clamp(-limit, limit)


def clipped_surrogate(
    logp: Tensor,
    old_logp: Tensor,
    adv: Tensor,
    *,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None,
) -> Tensor:
    """PPO's pessimistic surrogate as a loss `[C]`: -min(r A, clip(r, 1 - low, 1 + high) A).

    With `dual_clip` = c the loss of a negative advantage is at most c |A| (Ye et al., 1912.09729),
    which bounds the push that a token far off-policy can get.
    """
    ratio = policy_ratio(logp, old_logp)
    loss = torch.maximum(-adv * ratio, -adv * ratio.clamp(1.0 - clip_low, 1.0 + clip_high))
    if dual_clip is None:
        return loss
    return torch.where(adv < 0, torch.minimum(loss, -adv * dual_clip), loss)


def policy_loss(s: Any, tok: Any, adv: Tensor, **clip: Any) -> Tensor:
    """`clipped_surrogate` of the sampled token `[C]` against the policy that sampled it.

    `clip`: the values of `clip_settings`, as a recipe's factory gets them.
    """
    return clipped_surrogate(s.logp, old_logp_or_current(s, tok), adv, **clip)
