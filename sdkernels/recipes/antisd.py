"""AntiSD: away from the privileged teacher, by a bounded step, while it is still unsure."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.nn.functional import softplus

from sdkernels.recipes.evidence import signal_or_all, strength_or_full, teacher_evidence
from sdkernels.recipes.registry import ANCHORED, Body, register
from sdkernels.recipes.settings import flag, number
from sdkernels.recipes.surrogate import clip_settings, policy_loss


@register(
    "antisd",
    summary="group advantage plus ascent on the JSD to the teacher, gated by the teacher's entropy",
    source="AntiSD 2605.11609 (gate: sd.gates.Schmitt, off below .93 of the median teacher entropy "
    "of the first 5 steps; context: a verified sibling, else gold). lambda .1 is the default of "
    "its launch script. The bound of the log-ratio, +-20, is ours",
    settings={
        "lam": number(0.1, "weight of the ascent", low=0.0),
        "gated": flag(True, "False: always on, the paper's ablation, which collapses near step 90"),
        **clip_settings(),
    },
)
def antisd(*, lam: float, gated: bool, **clip: Any) -> Body:
    """GRPO's surrogate with A - lam g phi(u), u = log T(y) - log S(y), phi = (softplus - log 2)/2.

    On average over y from S that is the policy gradient which ascends the JSD of S and T at even
    weights; a token the teacher likes less gets at most lam (log 2)/2. g is the gate's direction,
    1 or 0 (`gate=` of `token_loss`); without a gate it is 1.
    """

    def switch(s: Any) -> Tensor | float:
        """The gate's 1 (on) or 0; 1 without a gate."""
        return s.direction if gated and hasattr(s, "direction") else 1.0

    def per_token(s: Any, tok: Any) -> Tensor:
        away = 0.5 * (softplus(teacher_evidence(s, tok)) - math.log(2.0)) * switch(s)
        return policy_loss(s, tok, tok.adv - lam * strength_or_full(tok) * away, **clip)

    def acted(s: Any, tok: Any) -> Tensor:
        """An open gate pushes, wherever there is a context to push away from."""
        return 0.0 - signal_or_all(tok, s.teacher_logp).to(s.teacher_logp.dtype) * switch(s)

    return Body(
        per_token,
        needs=ANCHORED | ({"gate"} if gated else set()),
        inputs=frozenset({"adv"}),
        optional=frozenset({"old_logp", "signal", "strength"}),
        anchored=True,
        gates=("schmitt",) if gated else (),
        direction=acted,
    )
