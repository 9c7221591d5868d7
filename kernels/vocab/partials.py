"""The layout of partial sums that the statistics kernels write and `merge` reads: `[C, F, P]`.

Each of the P parts of a row covers a slice of the vocabulary with its own pivot m (0 where the
slice is all -inf; the maximum itself is stored). With x = z - m and e = exp x, over the slice:

    MAX  max z          SUM  sum e          SUM_X  sum e x        of each model
    GAP_T  sum e_t (x_t - x_s)              GAP_S  sum e_s (x_t - x_s)

Parts of several tensors (vocabulary slices, tensor-parallel shards after an all-gather) are joined
by `torch.cat(..., dim=-1)`; the order of the parts is the order of summation.
"""

from __future__ import annotations

import triton.language as tl

MAX, SUM, SUM_X = tl.constexpr(0), tl.constexpr(1), tl.constexpr(2)
TEACHER_MAX, TEACHER_SUM, TEACHER_SUM_X = tl.constexpr(3), tl.constexpr(4), tl.constexpr(5)
GAP_T, GAP_S = tl.constexpr(6), tl.constexpr(7)

STUDENT_FIELDS = 3
PAIR_FIELDS = 8
