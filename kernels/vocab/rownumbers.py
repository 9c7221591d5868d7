"""The numbers per row that `merge` and `mixture` keep for the passes after them: `[C, N]` float32.

PIVOT is 0 for a row without mass, LOG_Z -inf and INV_Z 0, so that its softmax is 0 everywhere.
SHIFT is log Z_s - log Z_t, from the quotient: two rounded logarithms would lose a small divergence;
0 where either has no mass.
UNCLIPPED is the teacher's mass on the entries that the entry clip leaves alone.
"""

from __future__ import annotations

import triton.language as tl

PIVOT, LOG_Z, INV_Z, ENTROPY = (tl.constexpr(i) for i in range(4))
TEACHER_PIVOT, TEACHER_INV_Z, SHIFT = (tl.constexpr(i) for i in range(4, 7))
KL_STUDENT_TEACHER, KL_STUDENT_MIXTURE, UNCLIPPED = (tl.constexpr(i) for i in range(7, 10))

ROW_NUMBERS = 10
