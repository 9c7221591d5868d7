"""The passes over logits as plain functions of whole chunks, for torch.compile.

With x = z - max z (0 where the max is -inf), S = e^x_s / Z_s, T likewise, and
r = log(T / S) = x_t - x_s + shift, where 0 * anything = 0:
    maximum, sums: max, sum e^x, sum e^x x of each model; sum e^x_t g, sum e^x_s g, g = x_t - x_s
    mixture: sum S log(M/S), sum T log(M/T) for M = beta T + (1 - beta) S; sum min(T r, clip)
    dz_s = S (A + B x_s - G (r + KL(S||T)) - J (log(M/S) + KL(S||M))) - T (c + (c' where unclipped))

Run eagerly they make tensors `[C, V]`; compiled, every logit is read, worked on in registers and
summed, or written over. Conditions are on what was asked for, never on values.

Shape letters: C tokens of the chunk, V vocabulary (of this process's slice where it is split), F
sums of a row.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Logits(NamedTuple):
    """Raw logits `[C, V]` and their transforms. Numbers are tensors, since another temperature is
    not another program; None: no such transform.
    """

    raw_CV: Tensor
    bias_V: Tensor | None = None
    scale: Tensor | None = None
    softcap: Tensor | None = None
    temperature: Tensor | None = None


class Shares(NamedTuple):
    """beta and 1 - beta, which near 1 has no digits left when it is formed in float32."""

    teacher: Tensor
    student: Tensor


class Row(NamedTuple):
    """One model's numbers per row, `[C]`: the pivot of x, log sum e^x over the whole row (-inf if
    all logits are), and one over that sum (then 0): e^(x - log Z) would be wrong by the rounding of
    log Z, which is 4e-7 where Z is about 10,000.
    """

    pivot_C: Tensor
    log_z_C: Tensor
    inverse_z_C: Tensor


def transformed(logits: Logits, dtype: torch.dtype) -> Tensor:
    """The logits of the loss."""
    z_CV = logits.raw_CV.to(dtype)
    if logits.bias_V is not None:
        z_CV = z_CV + logits.bias_V.to(dtype)
    if logits.scale is not None:
        z_CV = z_CV * logits.scale
    if logits.softcap is not None:
        z_CV = torch.tanh(z_CV / logits.softcap) * logits.softcap
    if logits.temperature is not None:
        z_CV = z_CV / logits.temperature
    return z_CV


def maximum(logits: Logits, dtype: torch.dtype) -> Tensor:
    """`[C]`: the largest logit of each row.

    A program of its own: in one with the sums the compiler would keep a softcap's result, of a
    slab's size, from the first loop to the second.
    """
    return transformed(logits, dtype).amax(-1)


def sums(
    student: Logits,
    max_C: Tensor,
    teacher: Logits | None,
    teacher_max_C: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """`[C, F]` in float64: the fields of `rows.partials`, of one model or of two."""
    x_CV, e_CV = _pivoted(student, max_C, dtype)
    fields = [max_C.double(), _sum(e_CV), _sum(_times(e_CV, x_CV))]
    if teacher is not None and teacher_max_C is not None:
        t_x_CV, t_e_CV = _pivoted(teacher, teacher_max_C, dtype)
        # The gap entry by entry: two rounded cross terms would lose a small divergence.
        gap_CV = t_x_CV - x_CV
        fields += [teacher_max_C.double(), _sum(t_e_CV), _sum(_times(t_e_CV, t_x_CV))]
        fields += [_sum(_times(t_e_CV, gap_CV)), _sum(_times(e_CV, gap_CV))]
    return torch.stack(fields, dim=1)


def mixture(
    student: Logits,
    teacher: Logits,
    row: Row,
    teacher_row: Row,
    shift_C: Tensor,
    shares: Shares | None,
    entry_clip: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """`[C, F]` in float64: sum min(T r, clip) and the mass of clipped entries, then KL(S||M) and
    KL(T||M); those of the two pairs that have a setting.
    """
    x_CV, p_CV = _distribution(student, row, dtype)
    t_x_CV, t_p_CV = _distribution(teacher, teacher_row, dtype)
    r_CV = _log_ratio(x_CV, t_x_CV, shift_C)
    fields = []
    if entry_clip is not None:
        entry_CV = _times(t_p_CV, r_CV)
        clipped_CV = torch.where(entry_CV > entry_clip, t_p_CV, 0.0)
        fields += [_sum(torch.minimum(entry_CV, entry_clip)), _sum(clipped_CV)]
    if shares is not None:
        m_over_s_CV, m_over_t_CV = _log_mixture_ratios(r_CV, shares)
        fields += [-_sum(_times(p_CV, m_over_s_CV)), -_sum(_times(t_p_CV, m_over_t_CV))]
    return torch.stack(fields, dim=1)


def gradient(
    student: Logits,
    teacher: Logits | None,
    row: Row,
    teacher_row: Row | None,
    shift_C: Tensor | None,
    factors: dict[str, Tensor],
    shares: Shares | None,
    entry_clip: Tensor | None,
    out_CV: Tensor | None,
) -> None:
    """The gradient of the raw logits but for chosen ids, into `out_CV`, or over the student's.

    Args:
        factors: `[C]` each. "softmax": A in the formula above; "x": B; then, where a divergence has
            a coefficient, that coefficient by name, and "kl_value" = KL(S||T), "mixture_value" =
            KL(S||M) for what is added to it.
    """
    dtype = factors["softmax"].dtype
    x_CV, p_CV = _distribution(student, row, dtype)
    weight_CV = factors["softmax"][:, None]
    if "x" in factors:
        weight_CV = weight_CV + factors["x"][:, None] * x_CV
    dz_CV = p_CV * weight_CV
    if teacher is not None and teacher_row is not None:
        t_x_CV, t_p_CV = _distribution(teacher, teacher_row, dtype)
        if shift_C is not None:
            r_CV = _log_ratio(x_CV, t_x_CV, shift_C)
        if "kl_student_teacher" in factors:
            coef_C1 = factors["kl_student_teacher"][:, None]
            term_CV = (r_CV + factors["kl_value"][:, None]) * p_CV * coef_C1
            # An infinite divergence of a token that the loss leaves out must not reach the weight.
            dz_CV = dz_CV - torch.where(coef_C1 == 0, 0.0, term_CV)
        if "jsd" in factors and shares is not None:
            m_over_s_CV, _ = _log_mixture_ratios(r_CV, shares)
            term_CV = (m_over_s_CV + factors["mixture_value"][:, None]) * p_CV
            dz_CV = dz_CV - term_CV * (factors["jsd"] * shares.student)[:, None]
        dz_CV = torch.where(p_CV == 0, 0.0, dz_CV)
        # One product with T, rounded like that with S: S == T gives exactly 0.
        pull_CV = torch.zeros_like(factors["softmax"])[:, None]
        if "clipped_kl_teacher_student" in factors and entry_clip is not None:
            coef_C1 = factors["clipped_kl_teacher_student"][:, None]
            pull_CV = torch.where(_times(t_p_CV, r_CV) > entry_clip, 0.0, coef_C1)
        if "kl_teacher_student" in factors:
            pull_CV = factors["kl_teacher_student"][:, None] + pull_CV
        dz_CV = dz_CV - t_p_CV * pull_CV
    else:
        dz_CV = torch.where(p_CV == 0, 0.0, dz_CV)
    dz_CV = torch.where(row.log_z_C[:, None] == -torch.inf, 0.0, dz_CV)
    target_CV = student.raw_CV if out_CV is None else out_CV
    target_CV.copy_(dz_CV * slope(x_CV + row.pivot_C[:, None], student))


def slope(z: Tensor, logits: Logits) -> Tensor:
    """d z / d raw at logits of the loss z: the chain rule through scale, softcap, temperature."""
    factor = torch.ones((), dtype=z.dtype, device=z.device)
    if logits.softcap is not None:
        capped = z if logits.temperature is None else z * logits.temperature
        factor = 1.0 - (capped / logits.softcap).square()
    if logits.scale is not None:
        factor = factor * logits.scale
    return factor if logits.temperature is None else factor / logits.temperature


def _pivoted(logits: Logits, max_C: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x and e^x."""
    pivot_C = torch.where(max_C == -torch.inf, 0.0, max_C)
    x_CV = transformed(logits, dtype) - pivot_C[:, None]
    return x_CV, x_CV.exp()


def _distribution(logits: Logits, row: Row, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """x and the probabilities, 0 in rows without mass."""
    x_CV = transformed(logits, dtype) - row.pivot_C[:, None]
    return x_CV, x_CV.exp() * row.inverse_z_C[:, None]


def _log_ratio(x_CV: Tensor, t_x_CV: Tensor, shift_C: Tensor) -> Tensor:
    """log(T / S), 0 where neither has a logit above -inf."""
    return (t_x_CV - x_CV + shift_C[:, None]).nan_to_num(0.0, torch.inf, -torch.inf)


def _log_mixture_ratios(r_CV: Tensor, shares: Shares) -> tuple[Tensor, Tensor]:
    """log(M/S) and log(M/T), by the formulas of `mixture.log_mixture_ratios`."""
    small_t = shares.teacher <= shares.student
    small, large = torch.minimum(*shares), torch.maximum(*shares)
    y_CV = torch.where(small_t, r_CV, -r_CV)
    e_CV = (-y_CV.abs()).exp()
    # e^-|y| - 1 in its digits: compiled for the CPU, `expm1` is an exponential less 1.
    less_CV = -torch.tanh(0.5 * y_CV.abs()) * (1.0 + e_CV)
    u_CV = small * torch.where(y_CV > 0, -less_CV / e_CV, less_CV)
    far_CV = u_CV > 0.5
    log_CV = torch.where(far_CV, (small + large * e_CV).log(), u_CV.log1p())
    over_large_CV = torch.where(far_CV, y_CV + log_CV, log_CV)
    over_small_CV = torch.where(far_CV, log_CV, log_CV - y_CV)
    return (
        torch.where(small_t, over_large_CV, over_small_CV),
        torch.where(small_t, over_small_CV, over_large_CV),
    )


def _sum(value_CV: Tensor) -> Tensor:
    """Sums of rows. A compiled loop adds one after the other, which in float32 costs a digit."""
    return value_CV.sum(-1, dtype=torch.float64)


def _times(weight_CV: Tensor, value_CV: Tensor) -> Tensor:
    """weight * value with 0 * anything = 0."""
    return torch.where(weight_CV == 0, 0.0, weight_CV * value_CV)
