"""RLCSD: tokens on which right and wrong siblings disagree get a bounded extra advantage."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdkernels.recipes.evidence import contrast_evidence, has_contrast
from sdkernels.recipes.registry import ANCHORED, Body, register
from sdkernels.recipes.settings import number
from sdkernels.recipes.surrogate import clip_settings, policy_loss


@register(
    "rlcsd",
    summary="group advantage plus the tanh-bounded contrast of correct and wrong siblings",
    source="RLCSD 2606.11709; THU-BPM/RLCSD core_algos `rlcsd` (tau .02, beta 1, lambda .5, eta 1, "
    "K 4 wrong siblings, snapshot teacher every 10). Rows without a wrong sibling are dropped: "
    "their evidence would be infinite. So is a lone success, which has no other correct sibling; "
    "the trainer logs lone_success_share",
    settings={
        "lam": number(0.5, "weight of the contrast", low=0.0),
        "beta": number(1.0, "second weight of the contrast, as in the code", low=0.0),
        "tau": number(0.02, "evidence that counts as clear, nats: tanh(e / tau)", above=0.0),
        "bound": number(2.0, "bound of the extra advantage", above=0.0),
        "threshold": number(0.02, "a token is selected if its extra is larger", low=0.0),
        "eta": number(1.0, "weight of the selected tokens' mean", low=0.0),
        **clip_settings(),
    },
)
def rlcsd(
    *, lam: float, beta: float, tau: float, bound: float, threshold: float, eta: float, **clip: Any
) -> Body:
    """GRPO's surrogate with A + r, held on A's side of 0 (A = 0 stays 0), r = beta lam tanh(e/tau).

    e = log T+(y) - log mean_k T-_k(y), with the mean in `tok.second_teacher_logp`. The loss is
    mean over unselected + eta mean over selected tokens, two means of their own; that takes the
    share of selected tokens in the batch (`tok.batch_mean`). Without it all share one mean.
    """

    def extra(s: Any, tok: Any) -> Tensor:
        return (beta * lam * torch.tanh(contrast_evidence(s, tok) / tau)).clamp(-bound, bound)

    def selected(s: Any, tok: Any) -> tuple[Tensor, Tensor]:
        there = has_contrast(tok)
        return ((extra(s, tok).abs() > threshold) & there).to(s.teacher_logp.dtype), there

    def per_token(s: Any, tok: Any) -> Tensor:
        moved = tok.adv + extra(s, tok)
        adv = torch.where(tok.adv > 0, moved.clamp(min=0.0), moved.clamp(max=0.0))
        loss = policy_loss(s, tok, torch.where(tok.adv == 0, 0.0, adv), **clip)
        chosen, there = selected(s, tok)
        of_all: Tensor | float = 1.0
        of_chosen: Tensor | float = eta
        if hasattr(tok, "batch_mean"):
            share = tok.batch_mean
            of_all = 1.0 / torch.where(share < 1, 1.0 - share, 1.0)
            of_chosen = eta / torch.where(share > 0, share, 1.0)
        return torch.where(there, torch.where(chosen > 0, of_chosen * loss, of_all * loss), 0.0)

    return Body(
        per_token,
        needs=ANCHORED,
        inputs=frozenset({"adv", "second_teacher_logp"}),
        optional=frozenset({"old_logp", "signal", "batch_mean"}),
        batch_quantity=selected,
        context=("contrastive", {}),
    )
