"""Supervised fine-tuning on traces."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sdkernels.recipes.registry import Body, register


@register(
    "nll",
    summary="supervised fine-tuning: -log S(y)",
    source="maximum likelihood (SFT)",
)
def nll() -> Body:
    """loss = -log S(y)."""

    def per_token(s: Any, tok: Any) -> Tensor:
        return -s.logp

    return Body(per_token)
