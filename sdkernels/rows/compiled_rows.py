"""Row passes through torch.compile: the formulas of `torch_rows`, one loop over the logits for each
pass instead of a dozen operations.

Slabs stay raw until the gradient is written over the student's, and nothing of their size is made.
Costs per logit: one exponential of each model in the pass for the sums, one in the gradient.

It is asked for by hand (`backend="compiled"`), since the first call of every combination of
statistics compiles for seconds, and on the CPU that takes a C++ compiler.

Shape letters: C tokens of the chunk, R rows of a block, V vocabulary (of this process's slice where
it is split), K ids per token, F sums of a row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from sdkernels.rows import compiled_formulas as formulas
from sdkernels.rows.blocks import Scratch, blocks, rows_per_block, transformed
from sdkernels.rows.compiled_formulas import Logits, Row
from sdkernels.rows.interface import RowGate, RowSpec, Side
from sdkernels.rows.lists import side_by_side, split_lists
from sdkernels.rows.partials import MAX, TEACHER_MAX, Partials, RowNumbers, merge
from sdkernels.rows.torch_rows import topk_ids

# What one process may compile: combinations of statistics, transforms and dtypes. torch stops at 8.
MOST_PROGRAMS = 256
_TEACHER = ("kl_teacher_student", "kl_student_teacher", "jsd", "clipped_kl_teacher_student")


@dataclass
class _Rows:
    """Numbers per row of both models, for x relative to the slice's own pivot."""

    student: Row
    teacher: Row | None
    shift_C: Tensor | None
    unclipped_mass_C: Tensor | None = None
    kl_student_mixture_C: Tensor | None = None


@dataclass(frozen=True)
class _State:
    """What `backward` needs: the slabs as they were, and numbers per row."""

    student: Side
    teacher: Side | None
    spec: RowSpec
    stats: dict[str, Tensor]
    chosen_CK: Tensor | None
    rows: _Rows


class CompiledRows:
    """Row backend through torch.compile; see the module's docstring."""

    name = "compiled"
    fused = None  # a product with a reduction in it takes a kernel

    def scratch_bytes(self, tokens: int, vocab: int, spec: RowSpec) -> int:
        """A block of logits where the largest are looked for."""
        if spec.topk is None:
            return 0
        return rows_per_block(tokens, vocab, spec) * vocab * spec.compute_dtype.itemsize

    def forward(
        self,
        student: Side,
        teacher: Side | None,
        chosen_CK: Tensor | None,
        support_CK: Tensor | None,
        spec: RowSpec,
        gate: RowGate | None = None,
    ) -> tuple[dict[str, Tensor], Any]:
        """Per-token statistics of the chunk; see `rows.interface`."""
        if spec.topk is not None:
            source = student if spec.topk_of == "student" or teacher is None else teacher
            support_CK = _topk(source, spec.topk, spec)
        ids_CK = side_by_side(chosen_CK, support_CK)
        s, t = _logits(student, spec), None if teacher is None else _logits(teacher, spec)
        sums_CF = _compiled(formulas.sums)(s, t, spec.compute_dtype)
        sums = Partials(
            sums_CF[:, :, None],
            _logits_of(student, ids_CK, spec),
            None if teacher is None else _logits_of(teacher, ids_CK, spec),
        )
        vocab = student.raw_CV.shape[1]
        if spec.shard is not None:
            sums, vocab = spec.shard.join(sums, _one_part), spec.shard.total
        stats, numbers = merge(sums, vocab=vocab, ids_CK=ids_CK)
        rows = _row_numbers(sums_CF, numbers, spec.compute_dtype)
        if t is not None and not (spec.jsd_beta is None and spec.entry_clip is None):
            _mixture(s, t, spec, stats, rows)
        # Until here in float64: differences of sums keep their digits.
        stats = {name: value.to(spec.compute_dtype) for name, value in stats.items()}
        split_lists(stats, chosen_CK, support_CK)
        if gate is not None:
            stats["direction"] = gate.direction(stats["entropy"], gate.tau_C, gate.sigma_C)
        return stats, _State(student, teacher, spec, stats, chosen_CK, rows)

    def backward(self, state: Any, coefs: dict[str, Tensor]) -> Tensor:
        """Gradient with respect to the raw student logits, written over the student's slab."""
        student, spec, rows = state.student, state.spec, state.rows
        c = {name: coef.to(spec.compute_dtype) for name, coef in coefs.items()}
        if rows.teacher is not None:
            # No distribution, no direction to move in.
            t_empty_C = rows.teacher.log_z_C == -torch.inf
            for name in c.keys() & set(_TEACHER):
                c[name] = c[name].masked_fill(t_empty_C, 0.0)
        # Their slopes, before the logits are overwritten.
        onehots = list(_onehots(state, c))
        factors = _factors(state, c)
        towards_teacher = any(name in factors for name in _TEACHER)
        log_ratio = any(name in factors for name in _TEACHER[1:])
        out_CV = None if student.owned else torch.empty_like(student.raw_CV)
        _compiled(formulas.gradient)(
            _logits(student, spec),
            _logits(state.teacher, spec) if towards_teacher else None,
            rows.student,
            rows.teacher if towards_teacher else None,
            rows.shift_C if log_ratio else None,
            factors,
            _number(spec.jsd_beta, student, spec) if "jsd" in factors else None,
            _number(spec.entry_clip, student, spec) if _TEACHER[3] in factors else None,
            out_CV,
        )
        dz_CV: Tensor = student.raw_CV if out_CV is None else out_CV
        for columns_CK, part_CK in onehots:
            dz_CV.scatter_add_(-1, columns_CK, part_CK.to(dz_CV.dtype))
        return dz_CV


@functools.cache
def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    # fullgraph: beyond the limit torch would run the function as it stands, with tensors of the
    # slab's size.
    compiled: Callable[..., Any] = torch.compile(function, dynamic=True, fullgraph=True)
    return compiled


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled when it is called.

    Raises:
        RuntimeError: on call, when it cannot be compiled here.
    """

    def run(*args: Any) -> Any:
        import torch._dynamo as dynamo  # the compiler takes longer to import than torch

        try:
            with torch.no_grad(), dynamo.config.patch(recompile_limit=MOST_PROGRAMS):
                return _compile(function)(*args)
        except dynamo.exc.TorchDynamoException as error:
            raise RuntimeError(
                f"backend='compiled' cannot run: torch.compile failed on {function.__name__!r} of "
                "the row passes (on the CPU it takes a C++ compiler: set CXX or install g++). "
                "Use backend='auto' or 'torch'"
            ) from error

    return run


def _one_part(_size: int) -> int:
    """Parts that a row of any slice is cut into here."""
    return 1


def _number(value: float | None, side: Side, spec: RowSpec) -> Tensor | None:
    return None if value is None else side.raw_CV.new_tensor(value, dtype=spec.compute_dtype)


def _logits(side: Side, spec: RowSpec) -> Logits:
    return Logits(
        side.raw_CV,
        side.bias_V,
        None if side.scale == 1.0 else _number(side.scale, side, spec),
        _number(side.softcap, side, spec),
        None if side.temperature == 1.0 else _number(side.temperature, side, spec),
    )


def _topk(side: Side, k: int, spec: RowSpec) -> Tensor:
    """Ids of the k largest logits of each row, a block at a time; of all slices."""
    borrowed = replace(side, owned=False)  # the slab stays raw
    scratch = Scratch(side.raw_CV, spec)
    found = [
        topk_ids(transformed(borrowed, "topk", lo, hi, scratch), k, spec)
        for lo, hi in blocks(side.raw_CV.shape[0], side.raw_CV.shape[1], spec)
    ]
    return torch.cat(found)


def _held(side: Side, ids_CK: Tensor, spec: RowSpec) -> tuple[Tensor, Tensor]:
    """Columns of the slice, and whether it has them; the others point to column 0."""
    columns_CK = ids_CK if spec.shard is None else spec.shard.local(ids_CK)
    held_CK = (columns_CK >= 0) & (columns_CK < side.raw_CV.shape[1])
    return columns_CK.masked_fill(~held_CK, 0), held_CK


def _at(side: Side, columns_CK: Tensor, spec: RowSpec) -> Tensor:
    """Logits of the loss in some columns of each row."""
    bias_CK = None if side.bias_V is None else side.bias_V[columns_CK]
    chosen = _logits(side, spec)._replace(raw_CV=side.raw_CV.gather(-1, columns_CK), bias_V=bias_CK)
    return formulas.transformed(chosen, spec.compute_dtype)


def _logits_of(side: Side, ids_CK: Tensor | None, spec: RowSpec) -> Tensor | None:
    """Logits of the loss of some ids, 0 where the slice has them not."""
    if ids_CK is None:
        return None
    columns_CK, held_CK = _held(side, ids_CK, spec)
    return _at(side, columns_CK, spec).masked_fill(~held_CK, 0.0)


def _row_numbers(sums_CF: Tensor, numbers: RowNumbers, dtype: torch.dtype) -> _Rows:
    """What the passes after the merge need. Where there is one slice its pivot is the row's."""

    def of(field: int, pivot_C: Tensor, log_z_C: Tensor, z_C: Tensor) -> tuple[Row, Tensor]:
        own_C = sums_CF[:, field]
        own_C = own_C.masked_fill(own_C == -torch.inf, 0.0)
        moved_C = pivot_C - own_C
        # e^-moved is 1, or a slice's share of the row.
        inverse_C = ((-moved_C).exp() / z_C).masked_fill(z_C == 0, 0.0)
        row = Row(own_C.to(dtype), (log_z_C + moved_C).to(dtype), inverse_C.to(dtype))
        return row, moved_C

    s, moved_C = of(MAX, numbers.pivot_C, numbers.log_z_C, numbers.z_C)
    t_pivot_C, t_log_z_C, t_z_C = (
        numbers.teacher_pivot_C,
        numbers.teacher_log_z_C,
        numbers.teacher_z_C,
    )
    if t_pivot_C is None or t_log_z_C is None or t_z_C is None or numbers.shift_C is None:
        return _Rows(s, None, None)
    t, t_moved_C = of(TEACHER_MAX, t_pivot_C, t_log_z_C, t_z_C)
    return _Rows(s, t, (numbers.shift_C + (moved_C - t_moved_C)).to(dtype))


def _mixture(s: Logits, t: Logits, spec: RowSpec, stats: dict[str, Tensor], rows: _Rows) -> None:
    """The divergences that need finished softmaxes: JSD, and KL(T||S) with clipped entries."""
    side = Side(s.raw_CV)
    beta, clip = (_number(value, side, spec) for value in (spec.jsd_beta, spec.entry_clip))
    sums_CF = _compiled(formulas.mixture)(
        s, t, rows.student, rows.teacher, rows.shift_C, beta, clip, spec.compute_dtype
    )
    if spec.shard is not None:
        sums_CF = spec.shard.join_sums(sums_CF[:, :, None], _one_part).sum(-1)
    sums = list(sums_CF.unbind(1))
    if spec.entry_clip is not None:
        stats["clipped_kl_teacher_student"] = sums.pop(0)
        # 1 - (clipped mass), not the sum of the rest: exactly 1 where nothing is clipped.
        rows.unclipped_mass_C = (1.0 - sums.pop(0)).to(spec.compute_dtype)
    if spec.jsd_beta is not None:
        kl_s_C, kl_t_C = sums
        stats["jsd"] = spec.jsd_beta * kl_t_C + (1.0 - spec.jsd_beta) * kl_s_C
        rows.kl_student_mixture_C = kl_s_C.to(spec.compute_dtype)


def _onehots(state: _State, c: dict[str, Tensor]) -> Any:
    """Columns and parts of the gradient that only chosen ids have."""
    student, spec = state.student, state.spec
    empty_C1 = (state.rows.student.log_z_C == -torch.inf)[:, None]
    for name, ids_CK in (("logp", state.chosen_CK), ("topk_logp", state.stats.get("topk_ids"))):
        if name in c and ids_CK is not None:
            columns_CK, held_CK = _held(student, ids_CK, spec)
            slope_CK = formulas.slope(_at(student, columns_CK, spec), _logits(student, spec))
            part_CK = (c[name] * slope_CK).masked_fill(~held_CK | empty_C1, 0.0)
            yield columns_CK, part_CK


def _factors(state: _State, c: dict[str, Tensor]) -> dict[str, Tensor]:
    """`factors` of `formulas.gradient` from the coefficients of the statistics."""
    rows, stats = state.rows, state.stats
    softmax_C = torch.zeros_like(rows.student.log_z_C)
    for name in ("logp", "topk_logp"):
        if name in c:
            softmax_C = softmax_C - c[name].sum(-1)
    for name in ("lse", "kl_teacher_student"):
        if name in c:
            softmax_C = softmax_C + c[name]
    factors = {name: c[name] for name in _TEACHER if name in c}
    if "clipped_kl_teacher_student" in c and rows.unclipped_mass_C is not None:
        softmax_C = softmax_C + c["clipped_kl_teacher_student"] * rows.unclipped_mass_C
    if "entropy" in c:
        # -S (log S + H) with log S = x - log Z
        factors["x"] = -c["entropy"]
        softmax_C = softmax_C - c["entropy"] * (stats["entropy"] - rows.student.log_z_C)
    if "kl_student_teacher" in c:
        factors["kl_value"] = stats["kl_student_teacher"]
    if "jsd" in c and rows.kl_student_mixture_C is not None:
        factors["mixture_value"] = rows.kl_student_mixture_C
    return factors | {"softmax": softmax_C}
