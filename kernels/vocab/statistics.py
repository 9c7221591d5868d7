"""Statistics of logit slabs, one read of each: partial sums per row and vocabulary part.

A program takes one row and one part (a tile of the vocabulary that stays in registers), subtracts
the part's own maximum and writes the sums of `partials.py`; `merge` makes statistics of them. The
width of a part depends on the vocabulary alone, so neither the number of tokens nor their position
in a batch changes a bit of the result. The logits of chosen ids are copied out by the part that
holds them.

Reads 2 slabs once, writes 8 floats a part (0.2 % of the read at 2048 columns). Two exponentials a
column. Saved: nothing. Shape letters: C tokens, V vocabulary, K ids a token, P parts, F fields.
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import RowConfig, statistics_config
from .launch import OPTIONS, Logits, on_device
from .partials import GAP_S, GAP_T, MAX, PAIR_FIELDS, STUDENT_FIELDS, TEACHER_MAX
from .transform import FAR, bounded, exp, guarded, logits, touchable, weighed

IDS_TILE = 64


@triton.jit
def _write_moments(out_ptr, parts, z, maximum, FIRST: tl.constexpr):
    """Maximum, sum of e and sum of e x of a tile to fields FIRST, FIRST + 1, FIRST + 2."""
    x = z - guarded(maximum)
    finite = bounded(x)
    e = exp(finite)
    tl.store(out_ptr + FIRST * parts, maximum)
    tl.store(out_ptr + (FIRST + 1) * parts, tl.sum(e, 0))
    tl.store(out_ptr + (FIRST + 2) * parts, tl.sum(e * finite, 0))
    return x, e


@triton.jit
def _copy_chosen(
    row_ptr,
    bias_ptr,
    ids_ptr,
    out_ptr,
    first,
    last,
    pre,
    post,
    NUM_IDS: tl.constexpr,
    IDS_TILE: tl.constexpr,
):
    """Logits of those of the row's ids that lie in columns first..last - 1."""
    for start in range(0, NUM_IDS, IDS_TILE):
        slots = start + tl.arange(0, IDS_TILE)
        ids = tl.load(ids_ptr + slots, mask=slots < NUM_IDS, other=-1)
        mine = (ids >= first) & (ids < last)
        tl.store(out_ptr + slots, logits(row_ptr, bias_ptr, ids, mine, mine, pre, post), mask=mine)


@triton.jit
def statistics_kernel(
    student_ptr,  # [C, V]
    student_bias_ptr,  # [V] or None
    teacher_ptr,  # [C, V] or None
    teacher_bias_ptr,  # [V] or None
    ids_ptr,  # [C, K] or None
    partials_ptr,  # [C, F, P]
    chosen_ptr,  # [C, K] or None
    teacher_chosen_ptr,  # [C, K] or None
    student_stride,
    teacher_stride,
    vocab,
    parts,
    student_pre,
    student_post,
    teacher_pre,
    teacher_post,
    FIELDS: tl.constexpr,
    TILE: tl.constexpr,
    NUM_IDS: tl.constexpr,
    IDS_TILE: tl.constexpr,
    STUDENT_PADDED: tl.constexpr,
    TEACHER_PADDED: tl.constexpr,
):
    """One program for each row and part, the parts of a row next to each other."""
    program = tl.program_id(0)
    row = (program // parts).to(tl.int64)
    part = program % parts
    first = part * TILE
    cols = first + tl.arange(0, TILE)
    valid = cols < vocab
    out_ptr = partials_ptr + row * (FIELDS * parts) + part

    student_row = student_ptr + row * student_stride
    there = touchable(cols, vocab, valid, STUDENT_PADDED)
    z_s = logits(student_row, student_bias_ptr, cols, there, valid, student_pre, student_post)
    if teacher_ptr is None:
        _write_moments(out_ptr, parts, z_s, tl.max(z_s, 0), MAX)
    else:
        teacher_row = teacher_ptr + row * teacher_stride
        there = touchable(cols, vocab, valid, TEACHER_PADDED)
        z_t = logits(teacher_row, teacher_bias_ptr, cols, there, valid, teacher_pre, teacher_post)
        # In one: with the student's alone first, the teacher's loads would wait for the student's.
        maximum_s, maximum_t = tl.split(tl.max(tl.join(z_s, z_t), 0))
        x_s, e_s = _write_moments(out_ptr, parts, z_s, maximum_s, MAX)
        x_t, e_t = _write_moments(out_ptr, parts, z_t, maximum_t, TEACHER_MAX)
        # The gap itself is summed: two rounded cross terms would lose a small divergence. It is
        # -inf where the teacher has no mass, inf where the student has none, NaN for neither.
        gap = x_t - x_s
        tl.store(out_ptr + GAP_T * parts, tl.sum(weighed(e_t, gap, gap > -FAR), 0))
        tl.store(out_ptr + GAP_S * parts, tl.sum(weighed(e_s, gap, gap < FAR), 0))
    if ids_ptr is not None:
        last = tl.minimum(first + TILE, vocab)
        row_ids = ids_ptr + row * NUM_IDS
        _copy_chosen(
            student_row,
            student_bias_ptr,
            row_ids,
            chosen_ptr + row * NUM_IDS,
            first,
            last,
            student_pre,
            student_post,
            NUM_IDS,
            IDS_TILE,
        )
        if teacher_ptr is not None:
            _copy_chosen(
                teacher_row,
                teacher_bias_ptr,
                row_ids,
                teacher_chosen_ptr + row * NUM_IDS,
                first,
                last,
                teacher_pre,
                teacher_post,
                NUM_IDS,
                IDS_TILE,
            )


@dataclass(frozen=True)
class Partials:
    """What `merge` takes: sums `[C, F, P]`, and the logits of the chosen ids that were seen."""

    partials_CFP: Tensor
    chosen_CK: Tensor | None
    teacher_chosen_CK: Tensor | None


def statistics_parts(vocab: int) -> int:
    """Parts that a row of `vocab` columns is cut into."""
    return -(-vocab // statistics_config(vocab).tile)


def partial_statistics(
    student: Logits,
    teacher: Logits | None,
    ids_CK: Tensor | None,
    config: RowConfig | None = None,
) -> Partials:
    """Read both slabs once. `ids_CK`: int64, contiguous; ids outside the vocabulary are skipped.

    `config` is for tests; results depend on its tile in the last bits.
    """
    tokens, vocab = student.raw_CV.shape
    config = statistics_config(vocab) if config is None else config
    parts = triton.cdiv(vocab, config.tile)
    fields = STUDENT_FIELDS if teacher is None else PAIR_FIELDS
    num_ids = 0 if ids_CK is None else ids_CK.shape[1]
    new = functools.partial(torch.empty, dtype=torch.float32, device=student.raw_CV.device)
    partials_CFP = new(tokens, fields, parts)
    chosen_CK = None if ids_CK is None else new(tokens, num_ids)
    teacher_chosen_CK = None if teacher is None or ids_CK is None else new(tokens, num_ids)
    if tokens == 0:
        return Partials(partials_CFP, chosen_CK, teacher_chosen_CK)
    with on_device(student.raw_CV):
        statistics_kernel[(tokens * parts,)](
            student.raw_CV,
            student.bias_V,
            None if teacher is None else teacher.raw_CV,
            None if teacher is None else teacher.bias_V,
            ids_CK,
            partials_CFP,
            chosen_CK,
            teacher_chosen_CK,
            student.stride,
            0 if teacher is None else teacher.stride,
            vocab,
            parts,
            student.pre,
            student.post,
            None if teacher is None else teacher.pre,
            None if teacher is None else teacher.post,
            FIELDS=fields,
            TILE=config.tile,
            NUM_IDS=num_ids,
            IDS_TILE=IDS_TILE,
            STUDENT_PADDED=student.padded,
            TEACHER_PADDED=teacher is not None and teacher.padded,
            num_warps=config.num_warps,
            **OPTIONS,
        )
    return Partials(partials_CFP, chosen_CK, teacher_chosen_CK)
