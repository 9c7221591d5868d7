"""Row passes in plain torch: the CPU path, and in float64 the oracle of every other backend.

With x = z - max z (0 where the max is -inf), S = softmax z_s, T = softmax z_t, log Z = log sum exp
    x: H(S)     = log Z_s - sum S x_s          KL(T||S) = sum T g - log Z_t + log Z_s,   g = x_t -
    x_s KL(S||T) = -sum S g - log Z_s + log Z_t    JSD: `mixture`;  0 * anything = 0 everywhere.
    dz_s     = S * (A + B x_s - G g) - c T + JSD part + clipped part + onehots, with A, B, G one
    number per row.

`forward` makes partial sums of every row, one part each, which `partials.merge` turns into
statistics, after the other slices' have joined them where the vocabulary is split over processes.
It leaves x_s and x_t in owned slabs; `backward` leaves the gradient in the student's. Costs per
logit: two exponentials (one per model) in each of the two passes.

Shape letters: C tokens of the chunk, R rows of a block, V vocabulary (of this process's slice where
it is split), K ids per token.
"""

from __future__ import annotations

import threading
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdkernels.rows.blocks import (
    BLOCK_BUFFERS,
    Scratch,
    blocks,
    reread,
    rows_per_block,
    transformed,
    weighted_sums,
)
from sdkernels.rows.interface import RowGate, RowSpec, Side
from sdkernels.rows.lists import side_by_side, split_lists
from sdkernels.rows.mixture import finished, log_mixture_ratios
from sdkernels.rows.partials import MAX, TEACHER_MAX, Partials, RowNumbers, merge
from sdkernels.rows.softmax import Softmax, empty_rows, softmax, sums_under


@dataclass
class _State:
    """What `backward` needs: the slabs as `forward` left them, and per-row numbers."""

    student: Side
    teacher: Side | None
    spec: RowSpec
    stats: dict[str, Tensor]
    chosen_CK: Tensor | None
    rows: dict[str, Tensor]
    scratch: Scratch


def rescale(total: Tensor, ratio: Tensor) -> None:
    """See `rows.interface`; on the CPU it costs nothing to look."""
    if total.device.type != "cpu" or ratio != 1:
        total.mul_(ratio)


class TorchRows:
    """Row backend in plain torch; see the module's docstring."""

    name = "torch"
    rescale = staticmethod(rescale)
    fused = None  # a product with a reduction in it takes a kernel

    def __init__(self) -> None:
        self._last: tuple[int, weakref.ref[Scratch]] | None = None

    def _scratch(self, raw_CV: Tensor, spec: RowSpec) -> Scratch:
        """The buffers of the chunk before while its state lives, which is until this one's takes
        its place: fresh ones would be page faults for every chunk.
        """
        thread, last = threading.get_ident(), self._last
        kept = last[1]() if last is not None and last[0] == thread else None
        if kept is not None and kept.serves(raw_CV, spec):
            return kept
        scratch = Scratch(raw_CV, spec)
        self._last = thread, weakref.ref(scratch)
        return scratch

    def scratch_bytes(self, tokens: int, vocab: int, spec: RowSpec) -> int:
        """Bytes of block buffers alive at once."""
        return BLOCK_BUFFERS * rows_per_block(tokens, vocab, spec) * vocab * _itemsize(spec)

    def forward(
        self,
        student: Side,
        teacher: Side | None,
        chosen_CK: Tensor | None,
        support_CK: Tensor | None,
        spec: RowSpec,
        gate: RowGate | None = None,
    ) -> tuple[dict[str, Tensor], _State]:
        """Per-token statistics of the chunk; see `rows.interface`."""
        tokens, vocab = student.raw_CV.shape
        scratch = self._scratch(student.raw_CV, spec)
        found = []
        for lo, hi in blocks(tokens, vocab, spec):
            chosen_RK = None if chosen_CK is None else chosen_CK[lo:hi]
            support_RK = None if support_CK is None else support_CK[lo:hi]
            found.append(_sums(student, teacher, lo, hi, chosen_RK, support_RK, spec, scratch))
        # Once a chunk: on the few rows of a block these small operations cost as much as a pass.
        support_CK = _joined([block.support_RK for block in found])
        stats, numbers = merge(
            _all_rows([block.sums for block in found]),
            vocab=_vocab(vocab, spec),
            ids_CK=side_by_side(chosen_CK, support_CK),
        )
        rows = _row_numbers(_all_rows([block.mine for block in found]), numbers, spec)
        mixture_CF = _joined([block.mixture_RF for block in found])
        if mixture_CF is not None:
            for target, more in zip(
                (stats, rows), finished(mixture_CF, numbers, spec), strict=True
            ):
                target |= more
        split_lists(stats, chosen_CK, support_CK)
        if gate is not None:
            stats["direction"] = gate.direction(stats["entropy"], gate.tau_C, gate.sigma_C)
        return stats, _State(student, teacher, spec, stats, chosen_CK, rows, scratch)

    def backward(self, state: Any, coefs: dict[str, Tensor]) -> Tensor:
        """Gradient with respect to the raw student logits, written over the student's slab."""
        raw_CV = state.student.raw_CV
        out_CV = raw_CV if state.student.owned else torch.empty_like(raw_CV)
        for lo, hi in blocks(raw_CV.shape[0], raw_CV.shape[1], state.spec):
            _backward_block(state, coefs, lo, hi, out_CV, state.scratch)
        return out_CV


def _itemsize(spec: RowSpec) -> int:
    return spec.compute_dtype.itemsize


def one_part(_size: int) -> int:
    """Parts that a row of any slice is cut into here."""
    return 1


# --- forward --------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sums:
    """Of a block: partial sums of this process's slice and of all slices, the ids of a top-k
    support, and what `mixture.finished` takes.
    """

    mine: Partials
    sums: Partials
    support_RK: Tensor | None
    mixture_RF: Tensor | None


def _sums(
    student: Side,
    teacher: Side | None,
    lo: int,
    hi: int,
    chosen_RK: Tensor | None,
    support_RK: Tensor | None,
    spec: RowSpec,
    scratch: Scratch,
) -> _Sums:
    z_RV = transformed(student, "student", lo, hi, scratch)
    z_t_RV = None if teacher is None else transformed(teacher, "teacher", lo, hi, scratch)
    if spec.topk is not None:
        source_RV = z_RV if spec.topk_of == "student" or z_t_RV is None else z_t_RV
        support_RK = topk_ids(source_RV, spec.topk, spec)
    ids_RK = side_by_side(chosen_RK, support_RK)
    columns_RK = ids_RK if ids_RK is None or spec.shard is None else spec.shard.local(ids_RK)
    s = Softmax.of(z_RV, "student", columns_RK, scratch)
    weighted = [(s, s.x_RV)]
    t = gap_RV = None
    if z_t_RV is not None:
        t = Softmax.of(z_t_RV, "teacher", columns_RK, scratch)
        # The gap entry by entry: two rounded cross terms would lose a small divergence.
        gap_RV = torch.sub(t.x_RV, s.x_RV, out=scratch("gap", hi - lo))
        weighted += [(t, t.x_RV), (t, gap_RV), (s, gap_RV)]
    sum_x_R, *pair = sums_under(weighted, scratch)
    fields = [s.max_R, s.sum_R, sum_x_R]
    if t is not None:
        fields += [t.max_R, t.sum_R, *pair]
    mine = sums = Partials(
        torch.stack(fields, dim=1)[:, :, None], s.chosen_RK, None if t is None else t.chosen_RK
    )
    if spec.shard is not None:
        sums = spec.shard.join(mine, one_part)
    mixture_RF = None
    if t is not None and gap_RV is not None and not (spec.jsd_beta is spec.entry_clip is None):
        _, numbers = merge(sums, vocab=_vocab(z_RV.shape[1], spec))
        mixture_RF = _mixture_sums(s, t, gap_RV, spec, _row_numbers(mine, numbers, spec), scratch)
    return _Sums(mine, sums, support_RK, mixture_RF)


def _vocab(columns: int, spec: RowSpec) -> int:
    """Entries of the whole vocabulary, of whose slice there are so many columns."""
    return columns if spec.shard is None else spec.shard.total


def _joined(parts: list[Tensor | None]) -> Tensor | None:
    """Rows of all blocks; None where there are none."""
    some = [part for part in parts if part is not None]
    return torch.cat(some) if some else None


def _all_rows(blocks_of_sums: list[Partials]) -> Partials:
    partials_CFP = torch.cat([sums.partials_CFP for sums in blocks_of_sums])
    return Partials(
        partials_CFP,
        _joined([sums.chosen_CK for sums in blocks_of_sums]),
        _joined([sums.teacher_chosen_CK for sums in blocks_of_sums]),
    )


def topk_ids(z_RV: Tensor, k: int, spec: RowSpec) -> Tensor:
    """Ids of the k largest logits of each row, of all slices."""
    largest = z_RV.topk(min(k, z_RV.shape[1]), dim=-1)
    if spec.shard is None:
        return largest.indices
    return spec.shard.topk(largest.values, largest.indices, k)


def _row_numbers(mine: Partials, numbers: RowNumbers, spec: RowSpec) -> dict[str, Tensor]:
    """What the passes after the merge need, for x as the slab holds it: relative to the slice's own
    pivot, which is the row's where there is one slice.
    """
    rows: dict[str, Tensor] = {}
    moved = []
    for name, first, pivot_C, log_z_C in (
        ("s", MAX, numbers.pivot_C, numbers.log_z_C),
        ("t", TEACHER_MAX, numbers.teacher_pivot_C, numbers.teacher_log_z_C),
    ):
        if pivot_C is None or log_z_C is None:
            continue
        rows |= {f"{name}_pivot": pivot_C, f"{name}_log_z": log_z_C}
        if spec.shard is not None:
            max_C, sum_C = mine.partials_CFP[:, first : first + 2, 0].unbind(1)
            own_C = max_C.masked_fill(max_C == -torch.inf, 0.0)
            moved.append(pivot_C - own_C)
            log_z_C = log_z_C + moved[-1]
            share_C = (sum_C * (-log_z_C).exp()).masked_fill(sum_C == 0, 0.0)
            rows |= {
                f"{name}_pivot": own_C,
                f"{name}_log_z": log_z_C,
                f"{name}_share": share_C,
            }
    if numbers.shift_C is not None:
        rows["shift"] = numbers.shift_C
        if spec.shard is not None:
            rows["shift"] = numbers.shift_C + (moved[0] - moved[1])
    return rows


def _mixture_sums(
    s: Softmax,
    t: Softmax,
    gap_RV: Tensor,
    spec: RowSpec,
    rows: dict[str, Tensor],
    scratch: Scratch,
) -> Tensor:
    """The sums that `mixture.finished` takes, `[R, F]`."""
    for side, name in ((s, "s_share"), (t, "t_share")):
        if name in rows:
            side.p_RV.mul_(rows[name][:, None]).masked_fill_((rows[name] == 0)[:, None], 0.0)
    log_ratio_RV = gap_RV.add_(rows["shift"][:, None]).nan_to_num_(0.0, torch.inf, -torch.inf)
    sums: list[Tensor] = []
    if spec.entry_clip is not None:
        entry_RV = _entries(t.p_RV, log_ratio_RV, scratch)
        clipped_RV = entry_RV > spec.entry_clip
        sums += [entry_RV.clamp_(max=spec.entry_clip).sum(-1)]
        sums += [entry_RV.copy_(t.p_RV).masked_fill_(clipped_RV.logical_not_(), 0.0).sum(-1)]
    if spec.jsd_beta is not None:
        m_over_s_RV, m_over_t_RV = log_mixture_ratios(
            log_ratio_RV, spec.jsd_beta, scratch.like(log_ratio_RV)
        )
        pairs = [(s.p_RV, m_over_s_RV), (t.p_RV, m_over_t_RV)]
        sums += weighted_sums(pairs, scratch).neg_().unbind(1)
    sums_RF = torch.stack(sums, dim=1)
    if spec.shard is not None:
        sums_RF = spec.shard.join_sums(sums_RF[:, :, None], one_part).sum(-1)
    return sums_RF


def _entries(t_RV: Tensor, log_ratio_RV: Tensor, scratch: Scratch) -> Tensor:
    """T log(T/S), 0 log 0 = 0, in the buffer "terms"."""
    entry_RV = torch.mul(t_RV, log_ratio_RV, out=scratch("terms", t_RV.shape[0]))
    none_RV = torch.eq(t_RV, 0, out=scratch("mask", t_RV.shape[0], torch.bool))
    return entry_RV.masked_fill_(none_RV, 0.0)


# --- backward -------------------------------------------------------------------------------------


def _backward_block(
    state: _State, coefs: dict[str, Tensor], lo: int, hi: int, out_CV: Tensor, scratch: Scratch
) -> None:
    dtype, student, teacher = state.spec.compute_dtype, state.student, state.teacher
    c = {name: coef[lo:hi].to(dtype) for name, coef in coefs.items()}
    row = {name: value[lo:hi] for name, value in state.rows.items()}
    empty_R = empty_rows(row["s_log_z"])
    t_empty_R = None if teacher is None else empty_rows(row["t_log_z"])
    if t_empty_R is not None:
        # No distribution, no direction to move in.
        for name in c.keys() & set(NEEDS_TEACHER_LOGITS):
            c[name] = c[name].masked_fill(t_empty_R, 0.0)
    x_RV = reread(student, "student", lo, hi, row["s_pivot"], scratch)
    s_RV = softmax(x_RV, empty_R, row.get("s_share"), scratch("p_student", hi - lo))
    factor_RV = _student_factor(state, c, row, lo, hi, x_RV)
    t_RV = log_ratio_RV = None
    if teacher is not None and any(name in c for name in NEEDS_TEACHER_LOGITS):
        t_x_RV = reread(teacher, "teacher", lo, hi, row["t_pivot"], scratch)
        t_RV = softmax(t_x_RV, t_empty_R, row.get("t_share"), scratch("p_teacher", hi - lo))
        if any(name in c for name in NEEDS_LOG_RATIO):
            log_ratio_RV = torch.sub(t_x_RV, x_RV, out=scratch("gap", hi - lo))
            log_ratio_RV += row["shift"][:, None]
            log_ratio_RV.nan_to_num_(0.0, torch.inf, -torch.inf)
    # Straight into the result, which may be the memory of x: only a softcap reads x again.
    straight = out_CV.dtype == dtype and student.softcap is None
    dz_RV = out_CV[lo:hi] if straight else scratch("dz", hi - lo)
    torch.mul(s_RV, factor_RV, out=dz_RV)
    if t_RV is not None:
        _add_divergences(dz_RV, c, row, state, lo, hi, s_RV, t_RV, log_ratio_RV, scratch)
    elif "entropy" in c:
        _zero_without_mass(dz_RV, s_RV)
    for name, ids_CK in (("logp", state.chosen_CK), ("topk_logp", state.stats.get("topk_ids"))):
        if name in c and ids_CK is not None:
            _add_onehots(dz_RV, ids_CK[lo:hi], c[name], state.spec)
    if empty_R is not None:
        dz_RV.masked_fill_(empty_R[:, None], 0.0)
    _through_transforms(dz_RV, student, x_RV, row["s_pivot"])
    if not straight:
        out_CV[lo:hi] = dz_RV


NEEDS_LOG_RATIO = ("kl_student_teacher", "jsd", "clipped_kl_teacher_student")
NEEDS_TEACHER_LOGITS = ("kl_teacher_student", *NEEDS_LOG_RATIO)


def _add_onehots(dz_RV: Tensor, ids_RK: Tensor, coef_RK: Tensor, spec: RowSpec) -> None:
    """Add the coefficients at the columns that the slice holds."""
    columns_RK = ids_RK if spec.shard is None else spec.shard.local(ids_RK)
    vocab = dz_RV.shape[1]
    held_RK = (columns_RK >= 0) & (columns_RK < vocab)
    dz_RV.scatter_add_(-1, columns_RK.clamp(0, vocab - 1), coef_RK.masked_fill(~held_RK, 0.0))


def _student_factor(
    state: _State, c: dict[str, Tensor], row: dict[str, Tensor], lo: int, hi: int, x_RV: Tensor
) -> Tensor:
    """The factor of S that needs no teacher logits: `[R, 1]`, or `[R, V]` when the entropy has a
    coefficient.
    """
    factor_R = torch.zeros_like(row["s_log_z"])
    for name in ("logp", "topk_logp"):
        if name in c:
            factor_R = factor_R - c[name].sum(-1)
    for name in ("lse", "kl_teacher_student"):
        if name in c:
            factor_R = factor_R + c[name]
    if "clipped_kl_teacher_student" in c:
        factor_R = factor_R + c["clipped_kl_teacher_student"] * row["unclipped_mass"]
    if "entropy" not in c:
        return factor_R[:, None]
    # -S (log S + H) with log S = x - log Z
    coef_R = c["entropy"]
    factor_R = factor_R - coef_R * (state.stats["entropy"][lo:hi] - row["s_log_z"])
    return torch.addcmul(factor_R[:, None], x_RV, coef_R[:, None], value=-1.0)


def _add_divergences(
    dz_RV: Tensor,
    c: dict[str, Tensor],
    row: dict[str, Tensor],
    state: _State,
    lo: int,
    hi: int,
    s_RV: Tensor,
    t_RV: Tensor,
    log_ratio_RV: Tensor | None,
    scratch: Scratch,
) -> None:
    """Add what involves the teacher. Products are rounded one by one: S == T gives exactly 0."""
    if "kl_student_teacher" in c:
        assert log_ratio_RV is not None
        coef_R = c["kl_student_teacher"]
        kl_R = state.stats["kl_student_teacher"][lo:hi]
        factor_RV = torch.add(log_ratio_RV, kl_R[:, None], out=scratch("terms", hi - lo))
        factor_RV.mul_(s_RV).mul_(coef_R[:, None])
        if not torch.isfinite(kl_R).all():
            # An infinite divergence of a token that the loss leaves out must not reach the weight.
            factor_RV.masked_fill_((coef_R == 0)[:, None], 0.0)
        dz_RV -= factor_RV
    if "jsd" in c:
        assert log_ratio_RV is not None
        assert state.spec.jsd_beta is not None
        beta = state.spec.jsd_beta
        m_over_s_RV, _ = log_mixture_ratios(log_ratio_RV, beta, scratch.like(log_ratio_RV))
        factor_RV = m_over_s_RV.add_(row["kl_student_mixture"][:, None])
        dz_RV -= factor_RV.mul_(s_RV).mul_((c["jsd"] * (1.0 - beta))[:, None])
    if log_ratio_RV is not None or "entropy" in c:
        _zero_without_mass(dz_RV, s_RV)
    if "clipped_kl_teacher_student" in c:
        assert log_ratio_RV is not None
        assert state.spec.entry_clip is not None
        entry_RV = _entries(t_RV, log_ratio_RV, scratch)
        clipped_RV = entry_RV > state.spec.entry_clip
        kept_RV = entry_RV.copy_(t_RV).masked_fill_(clipped_RV, 0.0)
        dz_RV -= kept_RV.mul_(c["clipped_kl_teacher_student"][:, None])
    if "kl_teacher_student" in c:
        dz_RV -= t_RV.mul_(c["kl_teacher_student"][:, None])


def _zero_without_mass(dz_RV: Tensor, s_RV: Tensor) -> None:
    """0 * inf = 0 for terms of the form S * something; only -inf logits need it."""
    if not torch.isfinite(dz_RV.sum()):
        dz_RV.masked_fill_(s_RV == 0, 0.0)


def _through_transforms(dz_RV: Tensor, side: Side, x_RV: Tensor, pivot_R: Tensor) -> None:
    """Chain rule from the logits of the loss to the raw ones: temperature, softcap, scale."""
    if side.softcap is not None:
        slope_RV = (x_RV + pivot_R[:, None]).mul_(side.temperature / side.softcap).square_()
        dz_RV.mul_(slope_RV.neg_().add_(1.0))
    factor = side.scale / side.temperature
    if factor != 1.0:
        dz_RV.mul_(factor)
