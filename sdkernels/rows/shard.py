"""A vocabulary that is split over the processes of a group: what they tell each other.

Each process reduces the logits of its own slice; everything that is joined here is a handful of
numbers a token, never logits. The same partial sums that join the parts of a row join the slices.

Shape letters: C tokens of a chunk, W processes of the group, F fields, P parts of a row, K ids a
token, D hidden.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sdkernels.rows.partials import MAX, TEACHER_MAX, Partials


@dataclass(frozen=True)
class VocabShard:
    """One process's slice of the vocabulary.

    Attributes:
        group: process group (`torch.distributed`) whose members hold the slices.
        first: id of the slice's first entry.
        sizes: entries of every member's slice, by rank; those that take part only.
        total: entries of the whole vocabulary that take part.
        budget_bytes: the smallest default byte budget of the members' devices.
    """

    group: Any
    first: int
    sizes: tuple[int, ...]
    total: int
    budget_bytes: int

    @property
    def widest(self) -> int:
        """Entries of the largest slice. What must agree on all ranks, chunks above all, is planned
        for it.
        """
        return max(self.sizes)

    def local(self, ids_CK: Tensor) -> Tensor:
        """Vocabulary ids as columns of the slice; ids of other slices fall outside of it."""
        return ids_CK - self.first

    def join(self, mine: Partials, parts_of: Callable[[int], int]) -> Partials:
        """The parts of all slices side by side, and the logits of the chosen ids, whoever holds
        them. One collective.

        Args:
            mine: of this slice; logits of ids that it does not hold are 0.
            parts_of: number of parts that a slice of some size is cut into.
        """
        most = max(map(parts_of, self.sizes))
        partials_CFP = _padded(mine.partials_CFP, most)
        fields = partials_CFP.shape[1]
        lists = [item for item in (mine.chosen_CK, mine.teacher_chosen_CK) if item is not None]
        gathered_WCM = gather(torch.cat([partials_CFP.flatten(1), *lists], dim=-1), self.group)
        sums_WCM, *others = gathered_WCM.split(
            [fields * most, *(item.shape[1] for item in lists)], dim=-1
        )
        sums_WCFP = sums_WCM.unflatten(-1, (fields, most))
        joined_CFP = sums_WCFP.permute(1, 2, 0, 3).flatten(2)
        # One number and zeros: the sum is exact, and -inf stays what it is.
        known = [item.sum(0) for item in others]
        teacher = known.pop() if mine.teacher_chosen_CK is not None else None
        return Partials(joined_CFP, known.pop() if known else None, teacher)

    def join_sums(self, sums_CFP: Tensor, parts_of: Callable[[int], int]) -> Tensor:
        """Parts of plain sums of all slices side by side. One collective."""
        most = max(map(parts_of, self.sizes))
        padded_CFP = torch.nn.functional.pad(sums_CFP, (0, most - sums_CFP.shape[-1]))
        sums_WCFP = gather(padded_CFP, self.group)
        return sums_WCFP.permute(1, 2, 0, 3).flatten(2)

    def topk(self, logits_CK: Tensor, columns_CK: Tensor, k: int) -> Tensor:
        """Ids of the `k` largest logits of the whole vocabulary, largest first, given the largest
        of this slice (up to `k` of them). Two collectives.
        """
        missing = k - logits_CK.shape[1]
        # Padding stays below the logits of banned ids, so that no id comes twice.
        logits_CK = logits_CK.clamp_min(torch.finfo(logits_CK.dtype).min)
        logits_CK = torch.nn.functional.pad(logits_CK, (0, missing), value=-torch.inf)
        ids_CK = torch.nn.functional.pad(columns_CK + self.first, (0, missing))
        every_CK = gather(logits_CK, self.group).transpose(0, 1).flatten(1)
        every_id_CK = gather(ids_CK, self.group).transpose(0, 1).flatten(1)
        return every_id_CK.gather(-1, every_CK.topk(k, dim=-1).indices)

    def add_up(self, part_CD: Tensor) -> Tensor:
        """The sum over the group, in place."""
        dist.all_reduce(part_CD, group=self.group)
        return part_CD


def gather(mine: Tensor, group: Any) -> Tensor:
    """`[W, ...]`: the tensor of every rank, all of one shape."""
    out = mine.new_empty(dist.get_world_size(group), *mine.shape)
    dist.all_gather_into_tensor(out.view(-1), mine.reshape(-1), group=group)
    return out


def _padded(partials_CFP: Tensor, parts: int) -> Tensor:
    """With parts that hold nothing up to `parts`."""
    tokens, fields, have = partials_CFP.shape
    if have == parts:
        return partials_CFP
    padded_CFP = partials_CFP.new_zeros(tokens, fields, parts)
    padded_CFP[:, :, :have] = partials_CFP
    padded_CFP[:, MAX, have:] = -torch.inf
    if fields > TEACHER_MAX:
        padded_CFP[:, TEACHER_MAX, have:] = -torch.inf
    return padded_CFP
