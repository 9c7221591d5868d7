"""Row passes through torch.compile: the formulas of `torch_rows`, one loop over the logits for each
pass instead of a dozen operations.

Slabs stay raw until the gradient is written over the student's, and nothing of their size is made.
Costs per logit: one exponential of each model in the pass for the sums, one in the gradient.

It is asked for by hand (`backend="compiled"`) and for the CPU, since the first call of every
combination of statistics compiles for seconds, which takes a C++ compiler.

Shape letters: C tokens of the chunk, R rows of a block, V vocabulary (of this process's slice where
it is split), K ids per token, F sums of a row.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sdkernels.rows import compiled_formulas as formulas
from sdkernels.rows.blocks import Scratch, blocks, rows_per_block, transformed
from sdkernels.rows.compiled_formulas import Logits, Row
from sdkernels.rows.interface import RowGate, RowSpec, Side
from sdkernels.rows.lists import side_by_side, split_lists
from sdkernels.rows.mixture import finished
from sdkernels.rows.partials import MAX, SUM, TEACHER_MAX, Partials, RowNumbers, merge
from sdkernels.rows.torch_rows import (
    NEEDS_LOG_RATIO,
    NEEDS_TEACHER_LOGITS,
    one_part,
    rescale,
    topk_ids,
)

# Programs of one function in a process: combinations of statistics, transforms and dtypes. torch
# would stop at 8.
MOST_PROGRAMS = 256

# By itself the compiler stores in a tensor of a slab's size what is read 4 times, as the mixture's
# log-ratios are, or takes many operations or inputs, as softcapped ones do (30 and 8 in torch 2.11,
# more since), instead of keeping it in registers.
IN_REGISTERS: dict[str, Any] = dict.fromkeys(
    ("realize_reads_threshold", "realize_opcount_threshold", "realize_acc_reads_threshold"), 1000
)


@dataclass
class _Rows:
    """Numbers per row of both models, for x relative to the slice's own pivot."""

    student: Row
    teacher: Row | None
    shift_C: Tensor | None
    kept: dict[str, Tensor] = field(default_factory=dict)  # of `mixture.finished`


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
    rescale = staticmethod(rescale)
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
        maxima = [
            None if one is None else _compiled(formulas.maximum)(one, spec.compute_dtype)
            for one in (s, t)
        ]
        sums_CF = _compiled(formulas.sums)(s, maxima[0], t, maxima[1], spec.compute_dtype)
        sums = Partials(
            sums_CF[:, :, None],
            _logits_of(student, ids_CK, spec),
            None if teacher is None else _logits_of(teacher, ids_CK, spec),
        )
        vocab = student.raw_CV.shape[1]
        if spec.shard is not None:
            sums, vocab = spec.shard.join(sums, one_part), spec.shard.total
        stats, numbers = merge(sums, vocab=vocab, ids_CK=ids_CK)
        rows = _row_numbers(sums_CF, numbers, spec.compute_dtype)
        if t is not None and not (spec.jsd_beta is None and spec.entry_clip is None):
            sums_CF = _mixture_sums(s, t, spec, rows)
            more, kept = finished(sums_CF, numbers, spec)
            stats |= more
            rows.kept |= {name: value.to(spec.compute_dtype) for name, value in kept.items()}
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
            for name in c.keys() & set(NEEDS_TEACHER_LOGITS):
                c[name] = c[name].masked_fill(t_empty_C, 0.0)
        factors = _factors(state, c)
        towards_teacher = any(name in factors for name in NEEDS_TEACHER_LOGITS)
        teacher = state.teacher if towards_teacher else None
        log_ratio = any(name in factors for name in NEEDS_LOG_RATIO)
        numbers = {
            "row": rows.student,
            "teacher_row": rows.teacher if towards_teacher else None,
            "shift_C": rows.shift_C if log_ratio else None,
            "factors": factors,
            "shares": _shares(student, spec),
            "entry_clip": _number(spec.entry_clip, student, spec),
        }
        # Before the logits are overwritten.
        columns_CK, chosen_CK = _chosen_gradient(state, c, teacher, numbers)
        out_CV = None if student.owned else torch.empty_like(student.raw_CV)
        logits = _logits(student, spec), None if teacher is None else _logits(teacher, spec)
        _compiled(formulas.gradient)(*logits, **numbers, out_CV=out_CV)
        dz_CV: Tensor = student.raw_CV if out_CV is None else out_CV
        if columns_CK is not None and chosen_CK is not None:
            dz_CV.scatter_(-1, columns_CK, chosen_CK.to(dz_CV.dtype))
        return dz_CV


@functools.cache
def _compile(function: Callable[..., Any]) -> Callable[..., Any]:
    def program(*args: Any, **named: Any) -> Any:
        # As they stand the formulas make ten tensors of a slab's size.
        if not torch.compiler.is_compiling():
            raise RuntimeError(
                "backend='compiled' cannot run: torch.compile is switched off here "
                "(TORCHDYNAMO_DISABLE, or a stance of eager). Use backend='auto' or 'torch'"
            )
        return function(*args, **named)

    compiled: Callable[..., Any] = torch.compile(
        program, dynamic=True, fullgraph=True, options=IN_REGISTERS
    )
    return compiled


def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, compiled when it is called.

    Raises:
        RuntimeError: on call, when it cannot be compiled here.
    """

    def run(*args: Any, **named: Any) -> Any:
        import torch._dynamo as dynamo  # the compiler takes longer to import than torch

        try:
            with torch.no_grad(), dynamo.config.patch(recompile_limit=MOST_PROGRAMS):
                return _compile(function)(*args, **named)
        except dynamo.exc.FailOnRecompileLimitHit as error:
            raise RuntimeError(
                f"backend='compiled' cannot run: {MOST_PROGRAMS} combinations of statistics, "
                f"transforms and dtypes of {function.__name__!r} are compiled already in this "
                "process. Use backend='auto' or 'torch'"
            ) from error
        except dynamo.exc.TorchDynamoException as error:
            raise RuntimeError(
                f"backend='compiled' cannot run: torch.compile failed on {function.__name__!r} of "
                "the row passes (it takes a C++ compiler: set CXX or install g++). "
                "Use backend='auto' or 'torch'"
            ) from error

    return run


def _number(value: float | None, side: Side, spec: RowSpec) -> Tensor | None:
    return None if value is None else side.raw_CV.new_tensor(value, dtype=spec.compute_dtype)


def _shares(side: Side, spec: RowSpec) -> formulas.Shares | None:
    if spec.jsd_beta is None:
        return None
    new = functools.partial(side.raw_CV.new_tensor, dtype=spec.compute_dtype)
    return formulas.Shares(new(spec.jsd_beta), new(1.0 - spec.jsd_beta))


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


def _at(side: Side, columns_CK: Tensor, spec: RowSpec) -> Logits:
    """Some columns of each row, each with its own bias."""
    bias_CK = None if side.bias_V is None else side.bias_V[columns_CK]
    return _logits(side, spec)._replace(raw_CV=side.raw_CV.gather(-1, columns_CK), bias_V=bias_CK)


def _logits_of(side: Side, ids_CK: Tensor | None, spec: RowSpec) -> Tensor | None:
    """Logits of the loss of some ids, 0 where the slice has them not."""
    if ids_CK is None:
        return None
    columns_CK, held_CK = _held(side, ids_CK, spec)
    some_CK = formulas.transformed(_at(side, columns_CK, spec), spec.compute_dtype)
    return some_CK.masked_fill(~held_CK, 0.0)


def _row_numbers(sums_CF: Tensor, numbers: RowNumbers, dtype: torch.dtype) -> _Rows:
    """What the passes after the merge need. Where there is one slice its pivot is the row's."""

    def of(field: int, pivot_C: Tensor, log_z_C: Tensor, z_C: Tensor) -> tuple[Row, Tensor]:
        own_C = sums_CF[:, field]
        own_C = own_C.masked_fill(own_C == -torch.inf, 0.0)
        moved_C = pivot_C - own_C
        # e^-moved is 1, or a slice's share of the row; in a slice without mass it means nothing.
        empty_C = (z_C == 0) | (sums_CF[:, field + SUM - MAX] == 0)
        inverse_C = ((-moved_C).exp() / z_C).masked_fill(empty_C, 0.0)
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


def _mixture_sums(s: Logits, t: Logits, spec: RowSpec, rows: _Rows) -> Tensor:
    """The sums that `mixture.finished` takes, `[C, F]` in float64."""
    side = Side(s.raw_CV)
    shares, clip = _shares(side, spec), _number(spec.entry_clip, side, spec)
    sums_CF: Tensor = _compiled(formulas.mixture)(
        s, t, rows.student, rows.teacher, rows.shift_C, shares, clip, spec.compute_dtype
    )
    if spec.shard is not None:
        sums_CF = spec.shard.join_sums(sums_CF[:, :, None], one_part).sum(-1)
    return sums_CF


def _chosen_gradient(
    state: _State, c: dict[str, Tensor], teacher: Side | None, numbers: dict[str, Any]
) -> tuple[Tensor | None, Tensor | None]:
    """Columns of the ids that have coefficients of their own, and their whole gradient `[C, K]`.

    In the compute dtype, from softmax part and coefficient together: for a token that the model is
    sure of they nearly cancel, and in a 16-bit slab their sum would be 0.
    """
    student, spec = state.student, state.spec
    lists = {"logp": state.chosen_CK, "topk_logp": state.stats.get("topk_ids")}
    ids_CK = side_by_side(*(ids if name in c else None for name, ids in lists.items()))
    coef_CK = side_by_side(*(c.get(name) for name in lists))
    if ids_CK is None or coef_CK is None:
        return None, None
    columns_CK, held_CK = _held(student, ids_CK, spec)
    empty_C1 = (state.rows.student.log_z_C == -torch.inf)[:, None]
    coef_CK = coef_CK.masked_fill(~held_CK | empty_C1, 0.0)
    some = _at(student, columns_CK, spec)
    slope_CK = formulas.slope(formulas.transformed(some, spec.compute_dtype), some)
    chosen_CK = torch.empty_like(coef_CK)
    others = None if teacher is None else _at(teacher, columns_CK, spec)
    formulas.gradient(some, others, **numbers, out_CV=chosen_CK)
    return columns_CK, chosen_CK + _sums_of_equal(columns_CK, coef_CK) * slope_CK


def _sums_of_equal(columns_CK: Tensor, value_CK: Tensor) -> Tensor:
    """For each entry the sum over the entries of its row that name the same column."""
    sorted_CK, order_CK = columns_CK.sort(dim=-1)
    begins_CK = torch.zeros_like(columns_CK)
    begins_CK[:, 1:] = sorted_CK[:, 1:] != sorted_CK[:, :-1]
    group_CK = torch.empty_like(columns_CK).scatter_(-1, order_CK, begins_CK.cumsum(-1))
    sums_CK = torch.zeros_like(value_CK).scatter_add_(-1, group_CK, value_CK)
    return sums_CK.gather(-1, group_CK)


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
    factors = {name: c[name] for name in NEEDS_TEACHER_LOGITS if name in c}
    if "clipped_kl_teacher_student" in c:
        softmax_C = softmax_C + c["clipped_kl_teacher_student"] * rows.kept["unclipped_mass"]
    if "entropy" in c:
        # -S (log S + H) with log S = x - log Z
        factors["x"] = -c["entropy"]
        softmax_C = softmax_C - c["entropy"] * (stats["entropy"] - rows.student.log_z_C)
    if "kl_student_teacher" in c:
        factors["kl_value"] = stats["kl_student_teacher"]
    if "jsd" in c:
        factors["mixture_value"] = rows.kept["kl_student_mixture"]
    return factors | {"softmax": softmax_C}
