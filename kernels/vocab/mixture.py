"""The second read that the Jensen-Shannon divergence and the entry-clipped KL need.

Both are sums over entries of the log-ratio r = log T/S of the finished softmaxes:

    M = beta T + (1 - beta) S
    log M/S = log1p(beta expm1(r))        log M/T = log M/S - r        (or the other way round)
    jsd = beta KL(T||M) + (1 - beta) KL(S||M)        clipped = sum min(T r, c)

beta and 1 - beta come as two numbers, since near 1 the second has no digits left in float32. The
form of log M/S is exactly 0 at r = 0 and never overflows. An entry that only the teacher allows has
r = inf and contributes c, also where the student's row has no mass at all; jsd is 0 where either
row has none. Parts are plain sums here, added up by `merge_mixture_kernel` in one fixed tree. Reads
2 slabs once. Shape letters: C tokens, V vocabulary, P parts, N numbers kept per row.
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import RowConfig, elementwise_config
from .launch import OPTIONS, Logits, on_device
from .rownumbers import (
    INV_Z,
    KL_STUDENT_MIXTURE,
    PIVOT,
    ROW_NUMBERS,
    SHIFT,
    TEACHER_INV_Z,
    TEACHER_PIVOT,
    UNCLIPPED,
)
from .transform import FAR, bounded, exp, expm1_near_zero, log_of_sum, logits, touchable, weighed

_SUMS = 4  # KL(S||M), KL(T||M), clipped KL(T||S), clipped mass of T


@triton.jit
def softmax(z, kept_ptr, PIVOT_: tl.constexpr, INV_Z_: tl.constexpr):
    """x = z - pivot and the probability, 0 in a row without mass."""
    x = z - tl.load(kept_ptr + PIVOT_)
    return x, exp(bounded(x)) * tl.load(kept_ptr + INV_Z_)


@triton.jit
def log_ratio(x_s, x_t, kept_ptr):
    """r = log T/S; NaN where neither has mass."""
    return (x_t - x_s) + tl.load(kept_ptr + SHIFT)


@triton.jit
def defined(r):
    """The log-ratio, 0 where neither has mass (a NaN logit comes back in the merge)."""
    return tl.where(r != r, 0.0, r)


@triton.jit
def log_mixture_ratios(r, share_t, share_s, near):
    """log M/S and log M/T for M = share_t T + share_s S, to the last digits for any shares.

    With c the smaller share, d the larger, y the log-ratio of c's model over d's and
    u = c expm1(y), log M over d's model is log1p(u), over c's model y less. Above y = `near`, where
    u is 1/2, the second is log(c + d e^-y) and the first y more, which does not overflow. Neither
    form loses more than the rounding of r has, and neither divides. Finite for any r, NaN too: no
    mass times it adds nothing.
    """
    small_t = share_t <= share_s
    small, large = tl.minimum(share_t, share_s), tl.maximum(share_t, share_s)
    # Not tl.minimum: what that makes of NaN differs between a device and Triton's interpreters.
    r = tl.maximum(tl.where(r < FAR, r, FAR), -FAR)
    y = tl.where(small_t, r, -r)
    is_near = y <= near
    e = exp(tl.where(is_near, y, -y))
    u = small * tl.where(tl.abs(y) < 0.35, expm1_near_zero(y), e - 1.0)
    w = tl.where(is_near, 1.0 + u, tl.fma(large, e, small))
    log = log_of_sum(w, tl.where(is_near, u, w - 1.0))
    over_large = tl.where(is_near, log, y + log)
    over_small = tl.where(is_near, log - y, log)
    return tl.where(small_t, over_large, over_small), tl.where(small_t, over_small, over_large)


@triton.jit
def mixture_kernel(
    student_ptr,  # [C, V]
    student_bias_ptr,  # [V] or None
    teacher_ptr,  # [C, V]
    teacher_bias_ptr,  # [V] or None
    rows_ptr,  # [C, N]
    sums_ptr,  # [C, 4, P]
    student_stride,
    teacher_stride,
    vocab,
    parts,
    student_pre,
    student_post,
    teacher_pre,
    teacher_post,
    share_t,  # beta; None: no JSD
    share_s,  # 1 - beta
    near,
    clip,  # None: no clipped KL
    NUMBERS: tl.constexpr,
    TILE: tl.constexpr,
    STUDENT_PADDED: tl.constexpr,
    TEACHER_PADDED: tl.constexpr,
):
    """One program for each row and part."""
    program = tl.program_id(0)
    row = (program // parts).to(tl.int64)
    part = program % parts
    cols = part * TILE + tl.arange(0, TILE)
    valid = cols < vocab
    kept_ptr = rows_ptr + row * NUMBERS
    out_ptr = sums_ptr + row * (4 * parts) + part
    student_row = student_ptr + row * student_stride
    teacher_row = teacher_ptr + row * teacher_stride
    there = touchable(cols, vocab, valid, STUDENT_PADDED)
    z_s = logits(student_row, student_bias_ptr, cols, there, valid, student_pre, student_post)
    there = touchable(cols, vocab, valid, TEACHER_PADDED)
    z_t = logits(teacher_row, teacher_bias_ptr, cols, there, valid, teacher_pre, teacher_post)
    x_s, p_s = softmax(z_s, kept_ptr, PIVOT, INV_Z)
    x_t, p_t = softmax(z_t, kept_ptr, TEACHER_PIVOT, TEACHER_INV_Z)
    r = log_ratio(x_s, x_t, kept_ptr)
    if share_t is not None:
        over_student, over_teacher = log_mixture_ratios(r, share_t, share_s, near)
        tl.store(out_ptr, -tl.sum(p_s * over_student, 0))
        tl.store(out_ptr + parts, -tl.sum(p_t * over_teacher, 0))
    if clip is not None:
        entry = weighed(p_t, r, r > -FAR)
        clipped = entry > clip
        tl.store(out_ptr + 2 * parts, tl.sum(tl.where(clipped, clip, entry), 0))
        tl.store(out_ptr + 3 * parts, tl.sum(tl.where(clipped, p_t, 0.0), 0))


@triton.jit
def _part_sum(sums_ptr, parts, slots, FIELD: tl.constexpr):
    return tl.sum(tl.load(sums_ptr + FIELD * parts + slots, mask=slots < parts, other=0.0), 0)


@triton.jit
def merge_mixture_kernel(
    sums_ptr,  # [C, 4, P]
    rows_ptr,  # [C, N]
    jsd_ptr,  # [C] or None
    clipped_ptr,  # [C] or None
    parts,
    share_t,
    share_s,
    NUMBERS: tl.constexpr,
    PARTS_TILE: tl.constexpr,
):
    """One program a row."""
    row = tl.program_id(0).to(tl.int64)
    slots = tl.arange(0, PARTS_TILE)
    row_ptr = sums_ptr + row * (4 * parts)
    kept_ptr = rows_ptr + row * NUMBERS
    inverse_s = tl.load(kept_ptr + INV_Z)
    inverse_t = tl.load(kept_ptr + TEACHER_INV_Z)
    # 0, or NaN where a logit is: as a log-ratio it counted as 0.
    unknown = 0.0 * (inverse_s + inverse_t)
    if jsd_ptr is not None:
        kl_student = _part_sum(row_ptr, parts, slots, 0)
        kl_teacher = _part_sum(row_ptr, parts, slots, 1)
        jsd = share_t * kl_teacher + share_s * kl_student
        jsd = tl.where((inverse_s == 0.0) | (inverse_t == 0.0), 0.0, jsd)
        tl.store(jsd_ptr + row, jsd + unknown)
        tl.store(kept_ptr + KL_STUDENT_MIXTURE, kl_student + unknown)
    if clipped_ptr is not None:
        tl.store(clipped_ptr + row, _part_sum(row_ptr, parts, slots, 2) + unknown)
        # 1 - (clipped mass), not the sum of the rest: exactly 1 where nothing is clipped.
        tl.store(kept_ptr + UNCLIPPED, 1.0 - _part_sum(row_ptr, parts, slots, 3))


def shares(jsd_beta: float | None) -> tuple[float | None, float | None]:
    """The teacher's and the student's share of the mixture, subtracted in double precision."""
    return (None, None) if jsd_beta is None else (jsd_beta, 1.0 - jsd_beta)


def mixture_numbers(jsd_beta: float | None) -> tuple[float | None, float | None, float | None]:
    """What `log_mixture_ratios` takes: the shares, and the log-ratio up to which it is near."""
    share_t, share_s = shares(jsd_beta)
    if share_t is None or share_s is None:
        return None, None, None
    return share_t, share_s, math.log1p(0.5 / min(share_t, share_s))


def mixture_parts(vocab: int) -> int:
    """Parts that a row of `vocab` columns is cut into."""
    return -(-vocab // elementwise_config(vocab).tile)


def mixture_statistics(
    student: Logits,
    teacher: Logits,
    rows_CN: Tensor,
    *,
    jsd_beta: float | None,
    entry_clip: float | None,
    join: Callable[[Tensor], Tensor] | None = None,
    config: RowConfig | None = None,
) -> dict[str, Tensor]:
    """`jsd` and `clipped_kl_teacher_student` `[C]` where asked for; completes `rows_CN`.

    `join` puts the parts of other slices of the vocabulary beside those of this one, `[C, 4, P]`.
    """
    tokens, vocab = student.raw_CV.shape
    config = elementwise_config(vocab) if config is None else config
    parts = triton.cdiv(vocab, config.tile)
    stats = {}
    if jsd_beta is not None:
        stats["jsd"] = rows_CN.new_empty(tokens)
    if entry_clip is not None:
        stats["clipped_kl_teacher_student"] = rows_CN.new_empty(tokens)
    if tokens == 0:
        return stats
    # With a join all of them are read: what is not asked for must be a number there.
    make = torch.empty if join is None else torch.zeros
    sums_C4P = make((tokens, _SUMS, parts), dtype=torch.float32, device=student.raw_CV.device)
    with on_device(student.raw_CV):
        mixture_kernel[(tokens * parts,)](
            student.raw_CV,
            student.bias_V,
            teacher.raw_CV,
            teacher.bias_V,
            rows_CN,
            sums_C4P,
            student.stride,
            teacher.stride,
            vocab,
            parts,
            student.pre,
            student.post,
            teacher.pre,
            teacher.post,
            *mixture_numbers(jsd_beta),
            entry_clip,
            NUMBERS=ROW_NUMBERS,
            TILE=config.tile,
            STUDENT_PADDED=student.padded,
            TEACHER_PADDED=teacher.padded,
            num_warps=config.num_warps,
            **OPTIONS,
        )
        if join is not None:
            sums_C4P = join(sums_C4P).contiguous()
            parts = sums_C4P.shape[-1]
        merge_mixture_kernel[(tokens,)](
            sums_C4P,
            rows_CN,
            stats.get("jsd"),
            stats.get("clipped_kl_teacher_student"),
            parts,
            *shares(jsd_beta),
            NUMBERS=ROW_NUMBERS,
            PARTS_TILE=triton.next_power_of_2(parts),
            num_warps=1,
            **OPTIONS,
        )
    return stats
