"""Merge partial sums into statistics: split rows, vocabulary slices, tensor-parallel shards alike.

With M the largest of the parts' pivots, d = m - M a part's distance to it and a = exp d, per model

    Z = sum a SUM                                 sum e x = sum a (SUM_X + SUM d)
    sum e_t g = sum a_t (GAP_T + SUM_T (d_t - d_s))          sum e_s g the same with the student's
    H = log Z - (sum e x) / Z                     log-prob of y = (z_y - M) - log Z
    KL(T||S) = (sum e_t g) / Z_t + log Z_s / Z_t  KL(S||T) = -(sum e_s g) / Z_s - log Z_s / Z_t

A model without mass (all logits -inf) has H = 0 and log-probs -inf; KL(P||Q) is 0 where P has no
mass, inf where only Q has none, and NaN where either model has a NaN. An id outside the vocabulary
has log-prob NaN. The epilogue writes the entropy gate's direction: +1 where H <= tau else -1
("sign"), or tanh((tau - H) / sigma) ("tanh"), 0 where sigma is 0.

One program a row; reads 8 floats a part. Shape letters: C tokens, V vocabulary, K ids a token, P
parts, F fields of a part, N numbers kept per row (see `RowNumbers`).
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor

from .launch import OPTIONS, on_device
from .partials import (
    GAP_S,
    GAP_T,
    MAX,
    PAIR_FIELDS,
    SUM,
    SUM_X,
    TEACHER_MAX,
    TEACHER_SUM,
    TEACHER_SUM_X,
)
from .rownumbers import (
    ENTROPY,
    INV_Z,
    KL_STUDENT_TEACHER,
    LOG_Z,
    PIVOT,
    ROW_NUMBERS,
    SHIFT,
    TEACHER_INV_Z,
    TEACHER_PIVOT,
)
from .transform import FAR, bounded, exp, guarded, tanh, times, weighed

IDS_TILE = 64
RULES = ("sign", "tanh")


@dataclass(frozen=True)
class GateThresholds:
    """An entropy gate for the epilogue: `rule` "sign" or "tanh", thresholds in nats, `[C]`."""

    rule: str
    tau_C: Tensor
    sigma_C: Tensor | None = None


@triton.jit
def _field(row_ptr, slots, parts, FIELD: tl.constexpr, empty):
    return tl.load(row_ptr + FIELD * parts + slots, mask=slots < parts, other=empty)


@triton.jit
def _merged(row_ptr, slots, parts, MAX_: tl.constexpr, SUM_: tl.constexpr, SUM_X_: tl.constexpr):
    """One model: pivot of the row, distance of the parts from it, their masses, Z, log Z, H."""
    maxima = _field(row_ptr, slots, parts, MAX_, float("-inf"))
    pivot = guarded(tl.max(maxima, 0))
    distance = maxima - pivot
    rescale = exp(bounded(distance))
    mass = rescale * _field(row_ptr, slots, parts, SUM_, 0.0)
    sum_x = rescale * _field(row_ptr, slots, parts, SUM_X_, 0.0) + times(mass, distance)
    z = tl.sum(mass, 0)
    empty = z == 0.0
    log_z = tl.where(empty, float("-inf"), tl.log(z))
    entropy = tl.where(empty, 0.0, log_z - tl.sum(sum_x, 0) / z)
    # Not tl.maximum, which would turn a NaN into 0.
    entropy = tl.where(entropy < 0.0, 0.0, entropy)
    return pivot, distance, rescale, mass, z, log_z, entropy


@triton.jit
def _inverse(z):
    return tl.where(z == 0.0, 0.0, 1.0 / z)


@triton.jit
def _mean_gap(row_ptr, slots, parts, distance, rescale, mass, distance_gap, z, GAP: tl.constexpr):
    gap = _field(row_ptr, slots, parts, GAP, 0.0)
    there = distance > -FAR
    return tl.sum(weighed(rescale, gap, there) + weighed(mass, distance_gap, there), 0) / z


@triton.jit
def _write_logp(
    chosen_ptr, out_ptr, ids_ptr, vocab, pivot, log_z, NUM_IDS: tl.constexpr, TILE: tl.constexpr
):
    for start in range(0, NUM_IDS, TILE):
        slots = start + tl.arange(0, TILE)
        mask = slots < NUM_IDS
        ids = tl.load(ids_ptr + slots, mask=mask, other=-1)
        known = (ids >= 0) & (ids < vocab)
        # z_y - M and log Z stay apart until here: a constant added to all logits costs no digits.
        x = tl.load(chosen_ptr + slots, mask=known, other=0.0) - pivot
        logp = tl.where(log_z == float("-inf"), float("-inf"), x - log_z)
        tl.store(out_ptr + slots, tl.where(known, logp, float("nan")), mask=mask)


@triton.jit
def _direction(entropy, tau_ptr, sigma_ptr, row, RULE: tl.constexpr):
    tau = tl.load(tau_ptr + row)
    if RULE == "tanh":
        sigma = tl.load(sigma_ptr + row)
        value = tanh((tau - entropy) / tl.where(sigma > 0.0, sigma, 1.0))
    else:
        value = tl.where(tau >= entropy, 1.0, -1.0)
    if sigma_ptr is not None:
        value = tl.where(tl.load(sigma_ptr + row) > 0.0, value, 0.0)
    return value


# Slices of a tensor with some values per token, which begin anywhere.
@triton.jit(do_not_specialize_on_alignment=["ids_ptr", "tau_ptr", "sigma_ptr"])
def merge_kernel(
    partials_ptr,  # [C, F, P]
    ids_ptr,  # [C, K] or None
    chosen_ptr,  # [C, K] or None
    teacher_chosen_ptr,  # [C, K] or None
    tau_ptr,  # [C] or None
    sigma_ptr,  # [C] or None
    rows_ptr,  # [C, N]
    entropy_ptr,  # [C]
    lse_ptr,  # [C]
    logp_ptr,  # [C, K] or None
    teacher_entropy_ptr,  # [C] or None, like the rest
    teacher_lse_ptr,
    teacher_logp_ptr,
    kl_teacher_student_ptr,
    kl_student_teacher_ptr,
    direction_ptr,
    parts,
    vocab,
    FIELDS: tl.constexpr,
    NUMBERS: tl.constexpr,
    PARTS_TILE: tl.constexpr,
    NUM_IDS: tl.constexpr,
    IDS_TILE: tl.constexpr,
    RULE: tl.constexpr,
):
    """One program a row; the sums over parts are one fixed tree."""
    row = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, PARTS_TILE)
    row_ptr = partials_ptr + row * (FIELDS * parts)
    kept_ptr = rows_ptr + row * NUMBERS

    pivot_s, distance_s, rescale_s, mass_s, total_s, log_z_s, entropy = _merged(
        row_ptr, slots, parts, MAX, SUM, SUM_X
    )
    tl.store(entropy_ptr + row, entropy)
    tl.store(lse_ptr + row, pivot_s + log_z_s)
    tl.store(kept_ptr + PIVOT, pivot_s)
    tl.store(kept_ptr + LOG_Z, log_z_s)
    tl.store(kept_ptr + INV_Z, _inverse(total_s))
    tl.store(kept_ptr + ENTROPY, entropy)
    if tau_ptr is not None:
        tl.store(direction_ptr + row, _direction(entropy, tau_ptr, sigma_ptr, row, RULE))
    row_ids = row * NUM_IDS
    if ids_ptr is not None:
        _write_logp(
            chosen_ptr + row_ids,
            logp_ptr + row_ids,
            ids_ptr + row_ids,
            vocab,
            pivot_s,
            log_z_s,
            NUM_IDS,
            IDS_TILE,
        )
    if teacher_entropy_ptr is not None:
        pivot_t, distance_t, rescale_t, mass_t, total_t, log_z_t, teacher_entropy = _merged(
            row_ptr, slots, parts, TEACHER_MAX, TEACHER_SUM, TEACHER_SUM_X
        )
        tl.store(teacher_entropy_ptr + row, teacher_entropy)
        tl.store(teacher_lse_ptr + row, pivot_t + log_z_t)
        tl.store(kept_ptr + TEACHER_PIVOT, pivot_t)
        tl.store(kept_ptr + TEACHER_INV_Z, _inverse(total_t))
        between = distance_t - distance_s
        gap_t = _mean_gap(
            row_ptr, slots, parts, distance_t, rescale_t, mass_t, between, total_t, GAP_T
        )
        gap_s = _mean_gap(
            row_ptr, slots, parts, distance_s, rescale_s, mass_s, between, total_s, GAP_S
        )
        # Of the quotient: exact where teacher == student, and a small KL keeps its digits.
        shift = tl.log(tl.math.div_rn(total_s, total_t))
        no_student = log_z_s == float("-inf")
        no_teacher = log_z_t == float("-inf")
        # Without a model to shift to, the log-ratio of an entry is what its logits say: +-inf.
        tl.store(kept_ptr + SHIFT, tl.where(no_student | no_teacher, 0.0, shift))
        kl_ts = tl.where(no_student, float("inf"), gap_t + shift)
        kl_st = tl.where(no_teacher, float("inf"), -gap_s - shift)
        # 0, or NaN where there is one: the choices above would lose it.
        unknown = 0.0 * (total_s + total_t)
        kl_ts = tl.where(no_teacher, 0.0, kl_ts) + unknown
        kl_st = tl.where(no_student, 0.0, kl_st) + unknown
        tl.store(kl_teacher_student_ptr + row, kl_ts)
        tl.store(kl_student_teacher_ptr + row, kl_st)
        tl.store(kept_ptr + KL_STUDENT_TEACHER, kl_st)
        if ids_ptr is not None:
            _write_logp(
                teacher_chosen_ptr + row_ids,
                teacher_logp_ptr + row_ids,
                ids_ptr + row_ids,
                vocab,
                pivot_t,
                log_z_t,
                NUM_IDS,
                IDS_TILE,
            )


def merge(
    partials_CFP: Tensor,
    *,
    vocab: int,
    ids_CK: Tensor | None = None,
    chosen_CK: Tensor | None = None,
    teacher_chosen_CK: Tensor | None = None,
    gate: GateThresholds | None = None,
) -> tuple[dict[str, Tensor], Tensor]:
    """Statistics `[C]` (`logp`: `[C, K]`) by name, and the numbers per row that the passes after
    this one read, `[C, N]`.

    Args:
        partials_CFP: float32, any layout, from one tensor or joined from several along the last
            dimension.
        vocab: ids from 0 to `vocab` - 1 are known.
        ids_CK, chosen_CK, teacher_chosen_CK: int64 ids and the logits of those the parts hold.
        gate: also write `direction`.
    """
    partials_CFP = partials_CFP.contiguous()
    tokens, fields, parts = partials_CFP.shape
    pair = fields == PAIR_FIELDS
    num_ids = 0 if ids_CK is None else ids_CK.shape[1]
    new = partials_CFP.new_empty
    stats = {name: new(tokens) for name in ("entropy", "lse")}
    if ids_CK is not None:
        stats["logp"] = new(tokens, num_ids)
    if pair:
        names = ("teacher_entropy", "teacher_lse", "kl_teacher_student", "kl_student_teacher")
        stats |= {name: new(tokens) for name in names}
        if ids_CK is not None:
            stats["teacher_logp"] = new(tokens, num_ids)
    if gate is not None:
        stats["direction"] = new(tokens)
    rows_CN = new(tokens, ROW_NUMBERS)
    if tokens == 0:
        return stats, rows_CN
    with on_device(partials_CFP):
        merge_kernel[(tokens,)](
            partials_CFP,
            ids_CK,
            chosen_CK,
            teacher_chosen_CK,
            None if gate is None else gate.tau_C,
            None if gate is None else gate.sigma_C,
            rows_CN,
            stats["entropy"],
            stats["lse"],
            stats.get("logp"),
            stats.get("teacher_entropy"),
            stats.get("teacher_lse"),
            stats.get("teacher_logp"),
            stats.get("kl_teacher_student"),
            stats.get("kl_student_teacher"),
            stats.get("direction"),
            parts,
            vocab,
            FIELDS=fields,
            NUMBERS=ROW_NUMBERS,
            PARTS_TILE=triton.next_power_of_2(parts),
            NUM_IDS=num_ids,
            IDS_TILE=IDS_TILE,
            RULE="sign" if gate is None else gate.rule,
            num_warps=1,
            **OPTIONS,
        )
    return stats, rows_CN
