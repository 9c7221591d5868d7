"""Lists of ids: those the caller chose and a top-k support travel through a pass side by side."""

from __future__ import annotations

import torch
from torch import Tensor


def side_by_side(first_CK: Tensor | None, second_CK: Tensor | None) -> Tensor | None:
    """Both lists in one, contiguous; None: no list."""
    lists = [item for item in (first_CK, second_CK) if item is not None]
    return torch.cat(lists, dim=-1) if lists else None


def split_lists(
    stats: dict[str, Tensor], chosen_CK: Tensor | None, support_CK: Tensor | None
) -> None:
    """Undo `side_by_side` in the log-probs: `logp` has the chosen ids, `topk_logp` the support.

    Each in memory of its own: a loss function may flatten one, or notice a change in the other.
    """
    if support_CK is None:
        return
    chosen = 0 if chosen_CK is None else chosen_CK.shape[1]
    stats["topk_ids"] = support_CK
    for source, target in (("logp", "topk_logp"), ("teacher_logp", "teacher_topk_logp")):
        if source not in stats:
            continue
        both_CK = stats.pop(source)
        stats[target] = both_CK[:, chosen:].contiguous()
        if chosen_CK is not None:
            stats[source] = both_CK[:, :chosen].contiguous()
