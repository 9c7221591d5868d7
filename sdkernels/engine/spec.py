"""The settings of the row passes: which numbers are accepted, and what is computed in."""

from __future__ import annotations

import torch
from torch import Tensor

from sdkernels.engine.heads import LMHead
from sdkernels.engine.scalars import is_number, is_whole_number
from sdkernels.engine.teachers import Teacher, TopKTeacher
from sdkernels.rows import RowSpec


def row_spec(
    hidden: Tensor,
    head: LMHead,
    teacher: Teacher | None,
    jsd_beta: float | None,
    entry_clip: float | None,
    topk: int | None,
    topk_of: str,
) -> RowSpec:
    """Check the settings and lay them out; see `token_loss` for their meaning."""
    for name, value in (("jsd_beta", jsd_beta), ("entry_clip", entry_clip)):
        if value is not None and teacher is None:
            raise ValueError(f"{name}={value!r} needs a teacher=")
    if jsd_beta is not None and not (is_number(jsd_beta) and 0 < jsd_beta < 1):
        raise ValueError(
            f"jsd_beta={jsd_beta!r}: expected a number strictly between 0 and 1 (the limits of "
            "JSD are 0, not the KLs: "
            "use kl_teacher_student or kl_student_teacher for those)"
        )
    double = torch.float64 in (hidden.dtype, head.weight.dtype)
    dtype = torch.float64 if double else torch.float32
    # Its products with probabilities would underflow; 1 - beta is never that small.
    least = torch.finfo(dtype).tiny ** 0.5
    if jsd_beta is not None and jsd_beta < least:
        raise ValueError(
            f"jsd_beta={jsd_beta!r}: {dtype} has no digits for a share below {least:.0e}; "
            "jsd there is jsd_beta * kl_teacher_student"
        )
    if entry_clip is not None and not (is_number(entry_clip) and entry_clip > 0):
        raise ValueError(
            f"entry_clip={entry_clip!r}: expected a number above 0, in nats per vocabulary entry"
        )
    if topk_of not in ("student", "teacher"):
        raise ValueError(f"topk_of={topk_of!r}: accepted are 'student' and 'teacher'")
    if topk is not None:
        if isinstance(teacher, TopKTeacher):
            raise ValueError(f"topk={topk!r}: a TopKTeacher brings its own ids; leave topk out")
        if not is_whole_number(topk) or not 1 <= topk <= head.total_vocab:
            raise ValueError(
                f"topk={topk!r}: expected a whole number from 1 to V = {head.total_vocab}"
            )
        if topk_of == "teacher" and teacher is None:
            raise ValueError("topk_of='teacher' needs a teacher=")
    return RowSpec(
        dtype,
        jsd_beta,
        entry_clip,
        topk,
        topk_of,
        shard=head.shard,
    )
