"""Rows of a training step by hand."""

from __future__ import annotations

from typing import Any

import torch

from sdkernels.contexts import Example, Rollout
from sdkernels.train.batch import Row

CPU = torch.device("cpu")


def row(
    prompt: list[int], response: list[int], teacher: list[int] | None = None, **changes: Any
) -> Row:
    """One rollout of which every token counts half, unless `counts` says otherwise."""
    rollout = Rollout("a", 0, "", response, truncated=changes.pop("truncated", False))
    kept = changes.pop("counts", [True] * len(response))
    return Row(
        Example("a", []),
        rollout,
        prompt,
        teacher_prompt_ids=teacher,
        counts=kept,
        weights=[0.5 * keep for keep in kept],
        **changes,
    )
