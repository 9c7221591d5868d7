"""Partial sums of rows and their merge, in torch: the twin of `sdkernels.kernels.merge`.

The layout is that of `sdkernels.kernels.partials`, so either merge takes the sums of either
backend: split rows, and slices of a vocabulary that several processes hold. Torch rows make one
part a row. The formulas stand in `sdkernels.kernels.merge`.

Shape letters: C tokens, F fields of a part, P parts, K ids a token.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

MAX, SUM, SUM_X = 0, 1, 2
TEACHER_MAX, TEACHER_SUM, TEACHER_SUM_X = 3, 4, 5
GAP_T, GAP_S = 6, 7
PAIR_FIELDS = 8


@dataclass(frozen=True)
class Partials:
    """What a merge takes: sums `[C, F, P]`, and the logits of the chosen ids."""

    partials_CFP: Tensor
    chosen_CK: Tensor | None
    teacher_chosen_CK: Tensor | None


@dataclass(frozen=True)
class RowNumbers:
    """What later passes need of each row, `[C]`: the pivot, Z and log Z (0, 0 and -inf without
    mass), the teacher's, and log Z_s - log Z_t (0 where either has no mass).
    """

    pivot_C: Tensor
    log_z_C: Tensor
    z_C: Tensor
    teacher_pivot_C: Tensor | None = None
    teacher_log_z_C: Tensor | None = None
    teacher_z_C: Tensor | None = None
    shift_C: Tensor | None = None


def merge(
    sums: Partials, *, vocab: int, ids_CK: Tensor | None = None
) -> tuple[dict[str, Tensor], RowNumbers]:
    """Statistics `[C]` (`logp`: `[C, K]`) by name, and the numbers per row for later passes.

    Args:
        sums: of one tensor, or joined from several along the parts.
        vocab: ids from 0 to `vocab` - 1 are known, others have log-prob NaN.
        ids_CK: the ids whose logits `sums` holds.
    """
    partials_CFP = sums.partials_CFP
    s = _Model.of(partials_CFP, MAX)
    stats = {"entropy": s.entropy_C, "lse": s.pivot_C + s.log_z_C}
    known_CK = None if ids_CK is None else (ids_CK >= 0) & (ids_CK < vocab)
    if known_CK is not None and sums.chosen_CK is not None:
        stats["logp"] = s.logp(sums.chosen_CK, known_CK)
    if partials_CFP.shape[1] < PAIR_FIELDS:
        return stats, RowNumbers(s.pivot_C, s.log_z_C, s.z_C)
    t = _Model.of(partials_CFP, TEACHER_MAX)
    stats |= {"teacher_entropy": t.entropy_C, "teacher_lse": t.pivot_C + t.log_z_C}
    if known_CK is not None and sums.teacher_chosen_CK is not None:
        stats["teacher_logp"] = t.logp(sums.teacher_chosen_CK, known_CK)
    between_CP = t.distance_CP - s.distance_CP
    # Of the quotient: exact where teacher == student, and a small KL keeps its digits.
    shift_C = (s.z_C / t.z_C).log()
    kl_ts_C = t.mean(partials_CFP[:, GAP_T], between_CP) + shift_C
    kl_st_C = -s.mean(partials_CFP[:, GAP_S], between_CP) - shift_C
    # 0, or NaN where there is one: what is filled in would hide it.
    unknown_C = 0.0 * (s.z_C + t.z_C)
    kl_ts_C = kl_ts_C.masked_fill(s.empty_C, torch.inf).masked_fill(t.empty_C, 0.0) + unknown_C
    kl_st_C = kl_st_C.masked_fill(t.empty_C, torch.inf).masked_fill(s.empty_C, 0.0) + unknown_C
    # Without a model to shift to, the log-ratio of an entry is what its logits say: +-inf.
    shift_C = shift_C.masked_fill(s.empty_C | t.empty_C, 0.0)
    stats |= {"kl_teacher_student": kl_ts_C, "kl_student_teacher": kl_st_C}
    numbers = RowNumbers(s.pivot_C, s.log_z_C, s.z_C, t.pivot_C, t.log_z_C, t.z_C, shift_C=shift_C)
    return stats, numbers


@dataclass(frozen=True)
class _Model:
    """One model's row: pivot, distance of the parts from it, their masses, Z and what it gives."""

    pivot_C: Tensor
    distance_CP: Tensor
    rescale_CP: Tensor
    mass_CP: Tensor
    z_C: Tensor
    log_z_C: Tensor
    entropy_C: Tensor
    empty_C: Tensor

    @classmethod
    def of(cls, partials_CFP: Tensor, first: int) -> _Model:
        maxima_CP, sum_CP, sum_x_CP = partials_CFP[:, first : first + 3].unbind(1)
        pivot_C = maxima_CP.amax(-1)
        pivot_C = pivot_C.masked_fill(pivot_C == -torch.inf, 0.0)
        distance_CP = maxima_CP - pivot_C[:, None]
        rescale_CP = distance_CP.exp()
        mass_CP = rescale_CP * sum_CP
        z_C = mass_CP.sum(-1)
        empty_C = z_C == 0
        total_x_C = (rescale_CP * sum_x_CP + _times(mass_CP, distance_CP)).sum(-1)
        log_z_C = z_C.log()
        entropy_C = (log_z_C - total_x_C / z_C).clamp_min(0.0).masked_fill(empty_C, 0.0)
        return cls(pivot_C, distance_CP, rescale_CP, mass_CP, z_C, log_z_C, entropy_C, empty_C)

    def mean(self, gap_CP: Tensor, between_CP: Tensor) -> Tensor:
        """The mean of the gap under this model, from the sums of the parts."""
        total_CP = _times(self.rescale_CP, gap_CP) + _times(self.mass_CP, between_CP)
        return total_CP.sum(-1) / self.z_C

    def logp(self, chosen_CK: Tensor, known_CK: Tensor) -> Tensor:
        # z_y - M and log Z stay apart until here: a constant added to all logits costs no digits.
        logp_CK = (chosen_CK - self.pivot_C[:, None]) - self.log_z_C[:, None]
        logp_CK = logp_CK.masked_fill(self.empty_C[:, None], -torch.inf)
        return logp_CK.masked_fill(~known_CK, torch.nan)


def _times(weight: Tensor, value: Tensor) -> Tensor:
    """weight * value with 0 * anything = 0."""
    return torch.where(weight == 0, weight, weight * value)
