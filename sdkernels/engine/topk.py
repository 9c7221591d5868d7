"""Divergences on a teacher's top-k list: a few buckets a token, in plain torch on top of the true
log-probs.

The K given ids are one bucket each; with a tail, the rest of the vocabulary is one more. Merging
outcomes never raises a divergence, so these are lower bounds of the full-vocabulary values. Without
a tail both sides are renormalised on the K ids.

Shape letters: C tokens, K ids, B buckets.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdkernels.rows.mixture import log_mixture_ratios


def log1mexp(log_mass: Tensor) -> Tensor:
    """log(1 - exp(x)) for x <= 0, exact on both sides (-inf at 0); the gradient at x >= 0 is 0.

    Rounding can lift a total log-mass a little above 0; there is no tail then.
    """
    negative = log_mass < 0
    safe = torch.where(negative, log_mass, torch.full_like(log_mass, -1.0))
    near_one = safe > -0.6931471805599453
    # Both branches get arguments inside their own domain, so that neither sends a NaN through
    # torch.where.
    by_expm1 = (-torch.expm1(torch.where(near_one, safe, torch.full_like(safe, -0.5)))).log()
    by_log1p = torch.log1p(-torch.where(near_one, torch.full_like(safe, -1.0), safe).exp())
    return torch.where(
        negative,
        torch.where(near_one, by_expm1, by_log1p),
        torch.full_like(safe, -torch.inf),
    )


def buckets(logp_CK: Tensor, *, tail: bool) -> Tensor:
    """Log-probs of the buckets, `[C, K + 1]` with a tail, `[C, K]` renormalised without.

    The tail's mass is floored at the machine epsilon of the log-probs' dtype, below which their sum
    cannot tell it from 0: in float32 the tail of a peaked row rounds to 0, and KL(T||S) would be
    infinite. In float64 that is exact for any tail that occurs. SDPO's code floors the mass at 1e-7
    in every dtype (tail log-prob -16.118).
    """
    log_mass_C1 = logp_CK.logsumexp(-1, keepdim=True)
    if not tail:
        return logp_CK - log_mass_C1
    eps = torch.finfo(logp_CK.dtype).eps
    return torch.cat([logp_CK, log1mexp(log_mass_C1.clamp(max=-eps))], dim=-1)


def kl(logp_CB: Tensor, logq_CB: Tensor) -> Tensor:
    """KL(P||Q) over buckets, 0 log 0 = 0."""
    return _terms(logp_CB, logq_CB).sum(-1)


def jsd(student_CB: Tensor, teacher_CB: Tensor, beta: float) -> Tensor:
    """beta KL(T||M) + (1 - beta) KL(S||M) with M = beta T + (1 - beta) S; exactly 0 for T = S.

    From r = log(T/S), as in the row passes: a mixture formed first would leave a rounding error of
    log M at equality. The bound on r is beyond any log-ratio of two numbers, and keeps what a
    bucket without mass contributes at 0 times something finite.

    The derivative by S is (1 - beta) log(S/M): what comes through M cancels. So M is a constant
    here, which also spares autograd the kinks of the formula at r = 0.
    """
    with torch.no_grad():
        ratio_CB = (teacher_CB - student_CB).nan_to_num(0.0).clamp(-1e4, 1e4)
        m_over_s_CB, m_over_t_CB = log_mixture_ratios(ratio_CB, beta)
        pull_CB = beta * teacher_CB.exp() * m_over_t_CB
    return -(pull_CB + (1.0 - beta) * student_CB.exp() * m_over_s_CB).sum(-1)


def derived_statistics(
    topk_logp_CK: Tensor,
    teacher_logp_CK: Tensor,
    *,
    tail: bool,
    jsd_beta: float | None,
    entry_clip: float | None,
) -> dict[str, Tensor]:
    """Every divergence that a top-k teacher allows; gradients flow through `topk_logp_CK`."""
    student_CB = buckets(topk_logp_CK, tail=tail)
    teacher_CB = buckets(teacher_logp_CK, tail=tail)
    derived = {
        "kl_teacher_student": kl(teacher_CB, student_CB),
        "kl_student_teacher": kl(student_CB, teacher_CB),
    }
    if jsd_beta is not None:
        derived["jsd"] = jsd(student_CB, teacher_CB, jsd_beta)
    if entry_clip is not None:
        entry_CB = _terms(teacher_CB, student_CB)
        derived["clipped_kl_teacher_student"] = entry_CB.clamp(max=entry_clip).sum(-1)
    return derived


def _terms(logp_CB: Tensor, logq_CB: Tensor) -> Tensor:
    """p log(p / q) entry by entry, 0 where p is 0; masked before the product so that no gradient is
    NaN.
    """
    no_mass = logp_CB == -torch.inf
    logp = logp_CB.masked_fill(no_mass, 0.0)
    logq = logq_CB.masked_fill(no_mass, 0.0)
    return (logp.exp() * (logp - logq)).masked_fill(no_mass, 0.0)
