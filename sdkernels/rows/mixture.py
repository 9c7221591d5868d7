"""What the two torch backends share of the divergences that need finished softmaxes: JSD, and
KL(T||S) with clipped entries.

Shape letters: C tokens of the chunk, F sums of a row.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from sdkernels.rows.interface import RowSpec
from sdkernels.rows.partials import RowNumbers


def log_mixture_ratios(
    r: Tensor, beta: float, buffer: Callable[..., Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """log(M/S) and log(M/T) for M = beta T + (1 - beta) S, from r = log(T/S): exactly 0 where r is
    0, and to the last digits for any beta.

    With c the smaller share, d the larger, y the log-ratio of c's model over d's and
    u = c expm1(y) >= -1/2, log M over d's model is log1p(u), over c's model y less; from u = 1/2 on
    that is log(c + d e^-y) and the first one y more, which neither overflows nor cancels.

    Args:
        buffer: gives memory of the shape of `r` for a name, of its dtype unless `dtype=` is given;
            what it held is lost, and the results lie there.
    """
    if buffer is None:
        return log_mixture_ratios(
            r, beta, lambda name, dtype=None: torch.empty_like(r, dtype=dtype)
        )
    shares = beta, 1.0 - beta
    small, large = min(shares), max(shares)
    y = r if beta == small else torch.neg(r, out=buffer("y"))
    u = torch.expm1(y, out=buffer("near")).mul_(small)
    far = torch.gt(u, 0.5, out=buffer("is far", dtype=torch.bool))
    near_log = u.log1p_()
    far_log = torch.neg(y, out=buffer("far")).exp_().mul_(large).add_(small).log_()
    over_large = torch.add(y, far_log, out=buffer("over large"))
    torch.where(far, over_large, near_log, out=over_large)
    over_small = torch.where(far, far_log, near_log.sub_(y), out=far_log)
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
