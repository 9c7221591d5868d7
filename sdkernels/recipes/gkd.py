"""GKD: generalised Jensen-Shannon divergence to a teacher, usually a larger model."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sdkernels.recipes.divergence import divergence, engine_keywords, mixture_setting
from sdkernels.recipes.registry import Body, register


@register(
    "gkd",
    summary="generalised JSD to a teacher over the full vocabulary",
    source="GKD 2306.13649; TRL GKDConfig and generalized_jsd_loss (beta .5; TRL's temperature .9 "
    "is for sampling only)",
    settings={"beta": mixture_setting(0.5, "divergence")},
)
def gkd(*, beta: float) -> Body:
    """loss = beta KL(T||M) + (1 - beta) KL(S||M), M = beta T + (1 - beta) S; KLs at the ends."""

    def per_token(s: Any, tok: Any) -> Tensor:
        return divergence(s, beta)

    return Body(per_token, needs=frozenset({"teacher"}), engine=engine_keywords(beta))
