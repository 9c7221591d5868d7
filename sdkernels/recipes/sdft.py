"""SDFT: match a teacher that has seen the golden answer as an example."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sdkernels.recipes.divergence import (
    check_support,
    divergence,
    engine_keywords,
    mixture_setting,
    support_settings,
)
from sdkernels.recipes.registry import Body, register


@register(
    "sdft",
    summary="KL(T||S) over the full vocabulary to a teacher that has seen the golden answer",
    source="SDFT 2601.19897 (the author confirms KL(T||S) in issue 5 of the code; TRL's default is "
    "alpha .5 on the teacher's top 100). Its code leaves out the first 3 tokens: "
    "sd.recipes.skip_first_tokens",
    settings={"alpha": mixture_setting(0.0, "divergence"), **support_settings(tail=False)},
)
def sdft(*, alpha: float, support: str, topk: int | None, tail: bool | None) -> Body:
    """loss = D(T, S)."""
    check_support("sdft", topk, tail)

    def per_token(s: Any, tok: Any) -> Tensor:
        return divergence(s, alpha, support, tail)

    return Body(
        per_token,
        needs=frozenset({"teacher"}),
        engine=engine_keywords(alpha, support, topk),
    )
