"""What the two torch backends share of the divergences that need finished softmaxes: JSD, and
KL(T||S) with clipped entries.

Shape letters: C tokens of the chunk, F sums of a row.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdkernels.rows.interface import RowSpec
from sdkernels.rows.partials import RowNumbers


def log_mixture_ratios(r: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """log(M/S) and log(M/T) for M = beta T + (1 - beta) S, from r = log(T/S): exactly 0 where r is
    0, and to the last digits for any beta.

    With c the smaller share, d the larger, y the log-ratio of c's model over d's and
    u = c expm1(y) >= -1/2, log M over d's model is log1p(u), over c's model y less; from u = 1/2 on
    that is log(c + d e^-y) and the first one y more, which neither overflows nor cancels.
    """
    shares = beta, 1.0 - beta
    small, large = min(shares), max(shares)
    y = r if beta == small else -r
    u = torch.expm1(y).mul_(small)
    far = u > 0.5
    near_log, far_log = u.log1p_(), y.neg().exp_().mul_(large).add_(small).log_()
    over_large = torch.where(far, y + far_log, near_log)
    over_small = torch.where(far, far_log, near_log.sub_(y))
    return (over_large, over_small) if beta == small else (over_small, over_large)


def finished(
    sums_CF: Tensor, numbers: RowNumbers, spec: RowSpec
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Statistics, and the numbers that the gradient needs, from the sums over a row's entries.

    Args:
        sums_CF: with `spec.entry_clip` sum min(T r, clip) and the mass of clipped entries, then
            with `spec.jsd_beta` KL(S||M) and KL(T||M), where r = log(T/S) counts as 0 if it is NaN.
    """
    assert numbers.teacher_z_C is not None
    # 0, or NaN where a logit is.
    unknown_C = 0.0 * (numbers.z_C + numbers.teacher_z_C)
    sums = [sum_C + unknown_C for sum_C in sums_CF.unbind(1)]
    stats, kept = {}, {}
    if spec.entry_clip is not None:
        stats["clipped_kl_teacher_student"] = sums.pop(0)
        # 1 - (clipped mass), not the sum of the rest: exactly 1 where nothing is clipped.
        kept["unclipped_mass"] = 1.0 - sums.pop(0)
    if spec.jsd_beta is not None:
        kl_s_C, kl_t_C = sums
        jsd_C = spec.jsd_beta * kl_t_C + (1.0 - spec.jsd_beta) * kl_s_C
        alone_C = (numbers.z_C == 0) | (numbers.teacher_z_C == 0)
        stats["jsd"] = torch.where(alone_C, unknown_C, jsd_C)
        kept["kl_student_mixture"] = kl_s_C
    return stats, kept
