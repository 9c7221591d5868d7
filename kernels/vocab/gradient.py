"""The gradient pass: any weighted sum of statistics, differentiated by the raw student logits.

With S, T the softmaxes, r = log T/S and one coefficient c per token and statistic,

    dz = S (c_lse - sum_k c_logp,k + c_H (-log S - H))   + c_KL(T||S) (S - T)
       - c_KL(S||T) S (r + KL(S||T))                      - c_jsd (1 - beta) S (log M/S + KL(S||M))
       + c_clipped (S mass_unclipped - T [unclipped])     + sum_k c_logp,k onehot(y_k)

times the slope of the logit transforms; 0 in a row where the student has no mass, and without the
teacher's terms where that has none. Products are rounded one by one and S - T is formed first, so
T == S gives exactly 0.

The onehots are not in the big kernel. `chosen_kernel` computes the whole gradient at the K chosen
columns before (repeated ids get the sum of their coefficients), `put_kernel` writes it over those
columns after: deterministic without atomics, any K, and rounded once. Reads 2 slabs, writes one: in
place of the student's or beside it in a narrower dtype. Absent coefficients are None, a
compile-time constant. Shape letters: C tokens, V vocabulary, K ids a token, N numbers kept per row.
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import RowConfig, elementwise_config
from .launch import OPTIONS, Logits, ends_in_a_vector, on_device
from .mixture import defined, log_mixture_ratios, log_ratio, mixture_numbers, softmax
from .rownumbers import (
    ENTROPY,
    INV_Z,
    KL_STUDENT_MIXTURE,
    KL_STUDENT_TEACHER,
    LOG_Z,
    PIVOT,
    ROW_NUMBERS,
    TEACHER_INV_Z,
    TEACHER_PIVOT,
    UNCLIPPED,
)
from .transform import times, touchable, transformed

IDS_TILE = 32
# Slices of a tensor with a value per token, which begin anywhere: a chunk at another place would
# have the kernel compiled once more for its alignment, and one value a row is all that is loaded.
PER_TOKEN = (
    "plain_ptr",
    "entropy_ptr",
    "kl_teacher_student_ptr",
    "kl_student_teacher_ptr",
    "jsd_ptr",
    "clipped_ptr",
)
# Statistics of the pair, whose gradient reads the teacher's logits.
PAIR_STATISTICS = ("kl_teacher_student", "kl_student_teacher", "jsd", "clipped_kl_teacher_student")


@triton.jit
def _gradient_at(
    cols,
    valid,
    there_s,  # columns of the student's row that may be read, of the teacher's
    there_t,
    onehot,  # sum of the coefficients of the ids equal to each column
    row,
    student_ptr,
    student_bias_ptr,
    teacher_ptr,
    teacher_bias_ptr,
    rows_ptr,
    plain_ptr,
    entropy_ptr,
    kl_teacher_student_ptr,
    kl_student_teacher_ptr,
    jsd_ptr,
    clipped_ptr,
    student_stride,
    teacher_stride,
    student_pre,
    student_post,
    teacher_pre,
    teacher_post,
    share_t,
    share_s,
    near,
    clip,
    NUMBERS: tl.constexpr,
):
    """The formula of the module at some columns of one row."""
    kept_ptr = rows_ptr + row * NUMBERS
    raw = tl.load(student_ptr + row * student_stride + cols, mask=there_s, other=0.0)
    z_s, slope = transformed(raw, student_bias_ptr, cols, valid, student_pre, student_post)
    x_s, p_s = softmax(z_s, kept_ptr, PIVOT, INV_Z)
    log_z = tl.load(kept_ptr + LOG_Z)
    dz = tl.zeros(z_s.shape, tl.float32)
    if plain_ptr is not None:
        dz += p_s * tl.load(plain_ptr + row)
    if entropy_ptr is not None:
        surprise = (x_s - log_z) + tl.load(kept_ptr + ENTROPY)
        dz -= times(p_s, surprise) * tl.load(entropy_ptr + row)
    if teacher_ptr is not None:
        raw = tl.load(teacher_ptr + row * teacher_stride + cols, mask=there_t, other=0.0)
        z_t, _ = transformed(raw, teacher_bias_ptr, cols, valid, teacher_pre, teacher_post)
        x_t, p_t = softmax(z_t, kept_ptr, TEACHER_PIVOT, TEACHER_INV_Z)
        pair = tl.zeros(z_s.shape, tl.float32)
        if kl_teacher_student_ptr is not None:
            pair += (p_s - p_t) * tl.load(kl_teacher_student_ptr + row)
        r = log_ratio(x_s, x_t, kept_ptr)
        if kl_student_teacher_ptr is not None:
            excess = defined(r) + tl.load(kept_ptr + KL_STUDENT_TEACHER)
            # An infinite divergence of a token without weight must not reach the gradient.
            pair -= times(tl.load(kl_student_teacher_ptr + row), times(p_s, excess))
        if jsd_ptr is not None:
            over_student, _ = log_mixture_ratios(r, share_t, share_s, near)
            excess = over_student + tl.load(kept_ptr + KL_STUDENT_MIXTURE)
            pair -= times(p_s, excess) * (tl.load(jsd_ptr + row) * share_s)
        if clipped_ptr is not None:
            unclipped = tl.where(times(p_t, defined(r)) > clip, 0.0, p_t)
            mass = tl.load(kept_ptr + UNCLIPPED)
            pair += (p_s * mass - unclipped) * tl.load(clipped_ptr + row)
        # Without a distribution of the teacher there is no direction to move in.
        dz += tl.where(tl.load(kept_ptr + TEACHER_INV_Z) == 0.0, 0.0, pair)
    dz = (dz + onehot) * slope
    return tl.where(log_z == float("-inf"), 0.0, dz)


@triton.jit(do_not_specialize_on_alignment=PER_TOKEN)
def gradient_kernel(
    student_ptr,  # [C, V]
    student_bias_ptr,  # [V] or None
    teacher_ptr,  # [C, V] or None
    teacher_bias_ptr,  # [V] or None
    rows_ptr,  # [C, N]
    plain_ptr,  # [C] or None, like the coefficients below: the factor of S alone
    entropy_ptr,
    kl_teacher_student_ptr,
    kl_student_teacher_ptr,
    jsd_ptr,
    clipped_ptr,
    out_ptr,  # [C, V], may be student_ptr
    student_stride,
    teacher_stride,
    out_stride,
    vocab,
    parts,
    student_pre,
    student_post,
    teacher_pre,
    teacher_post,
    share_t,
    share_s,
    near,
    clip,
    NUMBERS: tl.constexpr,
    TILE: tl.constexpr,
    STUDENT_PADDED: tl.constexpr,
    TEACHER_PADDED: tl.constexpr,
    OUT_PADDED: tl.constexpr,
):
    """One program for each row and part; it reads a column before it writes it."""
    program = tl.program_id(0)
    row = (program // parts).to(tl.int64)
    cols = (program % parts) * TILE + tl.arange(0, TILE)
    valid = cols < vocab
    dz = _gradient_at(
        cols,
        valid,
        touchable(cols, vocab, valid, STUDENT_PADDED),
        touchable(cols, vocab, valid, TEACHER_PADDED),
        0.0,
        row,
        student_ptr,
        student_bias_ptr,
        teacher_ptr,
        teacher_bias_ptr,
        rows_ptr,
        plain_ptr,
        entropy_ptr,
        kl_teacher_student_ptr,
        kl_student_teacher_ptr,
        jsd_ptr,
        clipped_ptr,
        student_stride,
        teacher_stride,
        student_pre,
        student_post,
        teacher_pre,
        teacher_post,
        share_t,
        share_s,
        near,
        clip,
        NUMBERS,
    )
    there = touchable(cols, vocab, valid, OUT_PADDED)
    tl.store(out_ptr + row * out_stride + cols, dz.to(out_ptr.dtype.element_ty), mask=there)


@triton.jit(do_not_specialize_on_alignment=PER_TOKEN)
def chosen_kernel(
    student_ptr,  # as in gradient_kernel, but for the ids
    student_bias_ptr,
    teacher_ptr,
    teacher_bias_ptr,
    rows_ptr,
    plain_ptr,
    entropy_ptr,
    kl_teacher_student_ptr,
    kl_student_teacher_ptr,
    jsd_ptr,
    clipped_ptr,
    ids_ptr,  # [C, K]
    ids_coef_ptr,  # [C, K]
    out_ptr,  # [C, K]
    student_stride,
    teacher_stride,
    vocab,
    student_pre,
    student_post,
    teacher_pre,
    teacher_post,
    share_t,
    share_s,
    near,
    clip,
    NUMBERS: tl.constexpr,
    NUM_IDS: tl.constexpr,
    IDS_TILE: tl.constexpr,
):
    """The gradient at the chosen columns, onehots included. One program a row."""
    row = tl.program_id(0).to(tl.int64)
    row_ids = ids_ptr + row * NUM_IDS
    for start in range(0, NUM_IDS, IDS_TILE):
        slots = start + tl.arange(0, IDS_TILE)
        ids = tl.load(row_ids + slots, mask=slots < NUM_IDS, other=-1)
        known = (ids >= 0) & (ids < vocab)
        onehot = tl.zeros((IDS_TILE,), tl.float32)
        for other in range(NUM_IDS):
            coef = tl.load(ids_coef_ptr + row * NUM_IDS + other).to(tl.float32)
            onehot += tl.where(ids == tl.load(row_ids + other), coef, 0.0)
        dz = _gradient_at(
            ids,
            known,
            known,
            known,
            onehot,
            row,
            student_ptr,
            student_bias_ptr,
            teacher_ptr,
            teacher_bias_ptr,
            rows_ptr,
            plain_ptr,
            entropy_ptr,
            kl_teacher_student_ptr,
            kl_student_teacher_ptr,
            jsd_ptr,
            clipped_ptr,
            student_stride,
            teacher_stride,
            student_pre,
            student_post,
            teacher_pre,
            teacher_post,
            share_t,
            share_s,
            near,
            clip,
            NUMBERS,
        )
        tl.store(out_ptr + row * NUM_IDS + slots, dz, mask=known)


@triton.jit
def put_kernel(
    ids_ptr,  # [C, K]
    values_ptr,  # [C, K]
    out_ptr,  # [C, V]
    out_stride,
    vocab,
    NUM_IDS: tl.constexpr,
    IDS_TILE: tl.constexpr,
):
    """out[row, ids] = values; repeated ids carry the same value. One program a row."""
    row = tl.program_id(0).to(tl.int64)
    for start in range(0, NUM_IDS, IDS_TILE):
        slots = start + tl.arange(0, IDS_TILE)
        ids = tl.load(ids_ptr + row * NUM_IDS + slots, mask=slots < NUM_IDS, other=-1)
        known = (ids >= 0) & (ids < vocab)
        values = tl.load(values_ptr + row * NUM_IDS + slots, mask=known, other=0.0)
        target = out_ptr + row * out_stride + ids
        tl.store(target, values.to(out_ptr.dtype.element_ty), mask=known)


def logit_gradient(
    student: Logits,
    teacher: Logits | None,
    rows_CN: Tensor,
    coefs: dict[str, Tensor],
    out_CV: Tensor,
    *,
    ids_CK: Tensor | None = None,
    ids_coef_CK: Tensor | None = None,
    jsd_beta: float | None = None,
    entry_clip: float | None = None,
    out_padded: bool = False,
    config: RowConfig | None = None,
) -> None:
    """Write the gradient by the raw student logits to `out_CV`, which may be the student's slab.

    Args:
        rows_CN: from `merge` (and `mixture_statistics`).
        coefs: float32 `[C]`, contiguous, by statistic; "plain" is the factor of S alone: the
            coefficient of `lse` minus the sum of those of the chosen log-probs.
        out_padded: as `Logits.padded`, and what lies there may be overwritten.
        ids_CK, ids_coef_CK: int64 ids and float32 coefficients of their log-probs, contiguous.
    """
    tokens, vocab = student.raw_CV.shape
    if tokens == 0:
        return
    config = elementwise_config(vocab) if config is None else config
    parts = triton.cdiv(vocab, config.tile)
    if not any(name in coefs for name in PAIR_STATISTICS):
        teacher = None
    pointers = (
        student.raw_CV,
        student.bias_V,
        None if teacher is None else teacher.raw_CV,
        None if teacher is None else teacher.bias_V,
        rows_CN,
        coefs.get("plain"),
        coefs.get("entropy"),
        *(coefs.get(name) for name in PAIR_STATISTICS),
    )
    strides = (student.stride, 0 if teacher is None else teacher.stride)
    numbers = (
        student.pre,
        student.post,
        None if teacher is None else teacher.pre,
        None if teacher is None else teacher.post,
        *mixture_numbers(jsd_beta if "jsd" in coefs else None),
        entry_clip if "clipped_kl_teacher_student" in coefs else None,
    )
    with on_device(student.raw_CV):
        values_CK = None
        if ids_CK is not None:
            num_ids = ids_CK.shape[1]
            values_CK = torch.empty_like(ids_CK, dtype=torch.float32)
            chosen_kernel[(tokens,)](
                *pointers,
                ids_CK,
                ids_coef_CK,
                values_CK,
                *strides,
                vocab,
                *numbers,
                NUMBERS=ROW_NUMBERS,
                NUM_IDS=num_ids,
                IDS_TILE=IDS_TILE,
                num_warps=1,
                **OPTIONS,
            )
        gradient_kernel[(tokens * parts,)](
            *pointers,
            out_CV,
            *strides,
            out_CV.stride(0),
            vocab,
            parts,
            *numbers,
            NUMBERS=ROW_NUMBERS,
            TILE=config.tile,
            STUDENT_PADDED=student.padded,
            TEACHER_PADDED=teacher is not None and teacher.padded,
            OUT_PADDED=out_padded and ends_in_a_vector(out_CV),
            num_warps=config.num_warps,
            **OPTIONS,
        )
        if ids_CK is not None:
            put_kernel[(tokens,)](
                ids_CK,
                values_CK,
                out_CV,
                out_CV.stride(0),
                vocab,
                NUM_IDS=num_ids,
                IDS_TILE=IDS_TILE,
                num_warps=1,
                **OPTIONS,
            )
