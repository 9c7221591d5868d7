"""Row passes in plain torch: the CPU path, and in float64 the oracle of every other backend.

With x = z - max z (0 where the max is -inf), S = softmax z_s, T = softmax z_t, log Z = log sum exp
    x: H(S)     = log Z_s - sum S x_s          KL(T||S) = sum T g - log Z_t + log Z_s,   g = x_t -
    x_s KL(S||T) = -sum S g - log Z_s + log Z_t    JSD: `_jsd_terms`;  0 * anything = 0 everywhere.
    dz_s     = S * (A + B x_s - G g) - c T + JSD part + clipped part + onehots, with A, B, G one
    number per row.

Rows are worked on in blocks small enough to stay in the cache, so that a dozen passes over a block
cost about as much as one pass over memory. `forward` leaves x_s and x_t in owned slabs; `backward`
leaves the gradient in the student's. Costs per logit: two exponentials (one per model) in each of
the two passes.

Shape letters: C tokens of the chunk, R rows of a block, V vocabulary, K ids per token.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdkernels.rows.interface import RowSpec, Side

# 3 MiB of float32 a buffer, so that a handful stays in a CPU's last-level cache. Blocks half as big
# cost the same on an idle machine, but twice the barriers between threads (docs/decisions.md).
BLOCK_ELEMENTS = 786_432
# Block-sized buffers alive at once in the worst case (JSD on copied logits), for the byte budget.
BLOCK_BUFFERS = 14


@dataclass
class _State:
    """What `backward` needs: the slabs as `forward` left them, and per-row numbers."""

    student: Side
    teacher: Side | None
    spec: RowSpec
    stats: dict[str, Tensor]
    chosen_CK: Tensor | None
    rows: dict[str, Tensor] = field(default_factory=dict)


class TorchRows:
    """Row backend in plain torch; see the module's docstring."""

    name = "torch"

    def scratch_bytes(self, tokens: int, vocab: int, compute_dtype: torch.dtype) -> int:
        """Bytes of block buffers alive at once."""
        return BLOCK_BUFFERS * _rows_per_block(tokens, vocab) * vocab * compute_dtype.itemsize

    def forward(
        self,
        student: Side,
        teacher: Side | None,
        chosen_CK: Tensor | None,
        support_CK: Tensor | None,
        spec: RowSpec,
    ) -> tuple[dict[str, Tensor], _State]:
        """Per-token statistics of the chunk; see `rows.interface`."""
        tokens, vocab = student.raw_CV.shape
        blocks = []
        scratch = _Scratch(student.raw_CV, spec.compute_dtype)
        for lo, hi in _blocks(tokens, vocab):
            chosen_RK = None if chosen_CK is None else chosen_CK[lo:hi]
            support_RK = None if support_CK is None else support_CK[lo:hi]
            blocks.append(
                _forward_block(student, teacher, lo, hi, chosen_RK, support_RK, spec, scratch)
            )
        stats = {name: torch.cat([block[0][name] for block in blocks]) for name in blocks[0][0]}
        rows = {name: torch.cat([block[1][name] for block in blocks]) for name in blocks[0][1]}
        return stats, _State(student, teacher, spec, stats, chosen_CK, rows)

    def backward(self, state: Any, coefs: dict[str, Tensor]) -> Tensor:
        """Gradient with respect to the raw student logits, written over the student's slab."""
        raw_CV = state.student.raw_CV
        out_CV = raw_CV if state.student.owned else torch.empty_like(raw_CV)
        scratch = _Scratch(raw_CV, state.spec.compute_dtype)
        for lo, hi in _blocks(*raw_CV.shape):
            _backward_block(state, coefs, lo, hi, out_CV, scratch)
        return out_CV


# --- blocks ---------------------------------------------------------------------------------------


def _rows_per_block(tokens: int, vocab: int) -> int:
    # At most an eighth of the chunk, so that a small budget is not eaten by the block buffers.
    return max(1, min(BLOCK_ELEMENTS // max(vocab, 1), -(-tokens // 8)))


def _blocks(tokens: int, vocab: int) -> list[tuple[int, int]]:
    step = _rows_per_block(tokens, vocab)
    return [(lo, min(lo + step, tokens)) for lo in range(0, max(tokens, 1), step)]


class _Scratch:
    """Block buffers by name, made once a pass: fresh memory for every block costs page faults."""

    def __init__(self, raw_CV: Tensor, dtype: torch.dtype) -> None:
        self.vocab = raw_CV.shape[1]
        self.rows = _rows_per_block(*raw_CV.shape)
        self.dtype, self.device = dtype, raw_CV.device
        self.buffers: dict[str, Tensor] = {}

    def __call__(self, name: str, rows: int) -> Tensor:
        """`[rows, V]` of the buffer `name`; whatever it held is lost."""
        if name not in self.buffers:
            self.buffers[name] = torch.empty(
                self.rows, self.vocab, dtype=self.dtype, device=self.device
            )
        return self.buffers[name][:rows]


def _transformed(side: Side, name: str, lo: int, hi: int, scratch: _Scratch) -> Tensor:
    """Logits of the loss for rows lo..hi: in place in an owned slab of the compute dtype, else in a
    copy.
    """
    raw_RV = side.raw_CV[lo:hi]
    z_RV = raw_RV if _in_place(side, scratch.dtype) else scratch(name, hi - lo).copy_(raw_RV)
    if side.bias_V is not None:
        z_RV += side.bias_V
    if side.scale != 1.0:
        z_RV *= side.scale
    if side.softcap is not None:
        z_RV.div_(side.softcap).tanh_().mul_(side.softcap)
    if side.temperature != 1.0:
        z_RV /= side.temperature
    return z_RV


def _reread(side: Side, name: str, lo: int, hi: int, pivot_R: Tensor, scratch: _Scratch) -> Tensor:
    """x = z - pivot again: still in an owned slab of the compute dtype, else computed anew."""
    if _in_place(side, scratch.dtype):
        return side.raw_CV[lo:hi]
    return _transformed(side, name, lo, hi, scratch).sub_(pivot_R[:, None])


def _in_place(side: Side, dtype: torch.dtype) -> bool:
    """Whether the slab may hold x: it is ours, and as exact as the arithmetic."""
    return side.owned and side.raw_CV.dtype == dtype


def _empty_rows(log_total_R: Tensor) -> Tensor | None:
    """Rows whose logits are all -inf, None when there are none."""
    empty_R = log_total_R == -torch.inf
    return empty_R if empty_R.any() else None


def _softmax(x_RV: Tensor, empty_R: Tensor | None, out_RV: Tensor) -> Tensor:
    """softmax, and 0 in rows whose logits are all -inf."""
    p_RV = torch.softmax(x_RV, dim=-1, out=out_RV)
    return p_RV if empty_R is None else p_RV.masked_fill_(empty_R[:, None], 0.0)


def _weighted_sum(p_RV: Tensor, x_RV: Tensor, scratch: _Scratch) -> Tensor:
    """sum_v p x with 0 * inf = 0. The plain product is tried first: only -inf logits need the
    guarded one.
    """
    product_RV = torch.mul(p_RV, x_RV, out=scratch("product", p_RV.shape[0]))
    sum_R = product_RV.sum(-1)
    if not torch.isfinite(sum_R).all():
        sum_R = product_RV.masked_fill_(p_RV == 0, 0.0).sum(-1)
    return sum_R


@dataclass
class _Softmax:
    """One model's block: pivoted logits, probabilities, and the numbers that go with them."""

    x_RV: Tensor
    p_RV: Tensor
    pivot_R: Tensor
    log_z_R: Tensor
    empty_R: Tensor | None

    @classmethod
    def of(cls, side: Side, name: str, lo: int, hi: int, scratch: _Scratch) -> _Softmax:
        x_RV = _transformed(side, name, lo, hi, scratch)
        pivot_R = x_RV.amax(-1)
        empty_R = _empty_rows(pivot_R)
        if empty_R is not None:
            pivot_R = pivot_R.masked_fill(empty_R, 0.0)
        x_RV.sub_(pivot_R[:, None])
        p_RV = _softmax(x_RV, empty_R, scratch(f"p_{name}", hi - lo))
        # The largest probability is exp(0) / Z, so log Z needs no further pass of exponentials.
        log_z_R = -p_RV.amax(-1).log()
        if empty_R is not None:
            log_z_R = log_z_R.masked_fill(empty_R, -torch.inf)
        return cls(x_RV, p_RV, pivot_R, log_z_R, empty_R)

    def entropy(self, scratch: _Scratch) -> Tensor:
        expected_R = _weighted_sum(self.p_RV, self.x_RV, scratch)
        entropy_R = (self.log_z_R - expected_R).clamp_min(0.0)
        return entropy_R if self.empty_R is None else entropy_R.masked_fill(self.empty_R, 0.0)

    def logp(self, ids_RK: Tensor) -> Tensor:
        # x_y and log Z stay apart until here, so that a constant added to all logits costs no
        # digits.
        logp_RK = self.x_RV.gather(-1, ids_RK) - self.log_z_R[:, None]
        if self.empty_R is None:
            return logp_RK
        return logp_RK.masked_fill(self.empty_R[:, None], -torch.inf)


# --- forward --------------------------------------------------------------------------------------


def _forward_block(
    student: Side,
    teacher: Side | None,
    lo: int,
    hi: int,
    chosen_RK: Tensor | None,
    support_RK: Tensor | None,
    spec: RowSpec,
    scratch: _Scratch,
) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    s = _Softmax.of(student, "student", lo, hi, scratch)
    stats = {"entropy": s.entropy(scratch), "lse": s.pivot_R + s.log_z_R}
    rows = {"s_pivot": s.pivot_R, "s_log_z": s.log_z_R}
    if chosen_RK is not None:
        stats["logp"] = s.logp(chosen_RK)
    t = None
    if teacher is not None:
        t = _Softmax.of(teacher, "teacher", lo, hi, scratch)
        stats |= {"teacher_entropy": t.entropy(scratch), "teacher_lse": t.pivot_R + t.log_z_R}
        rows |= {"t_pivot": t.pivot_R, "t_log_z": t.log_z_R}
        if chosen_RK is not None:
            stats["teacher_logp"] = t.logp(chosen_RK)
        _divergences(s, t, spec, stats, rows, scratch)
    if spec.topk is not None:
        source = s if spec.topk_of == "student" or t is None else t
        support_RK = source.x_RV.topk(spec.topk, dim=-1).indices
    if support_RK is not None:
        stats |= {"topk_ids": support_RK, "topk_logp": s.logp(support_RK)}
        if t is not None:
            stats["teacher_topk_logp"] = t.logp(support_RK)
    return stats, rows


def _divergences(
    s: _Softmax,
    t: _Softmax,
    spec: RowSpec,
    stats: dict[str, Tensor],
    rows: dict[str, Tensor],
    scratch: _Scratch,
) -> None:
    """The divergences, from the gap accumulated entry by entry: two rounded cross terms would lose
    a small KL.
    """
    shift_R = s.log_z_R - t.log_z_R
    gap_RV = torch.sub(t.x_RV, s.x_RV, out=scratch("gap", t.x_RV.shape[0]))
    kl_ts_R = _weighted_sum(t.p_RV, gap_RV, scratch) + shift_R
    kl_st_R = -_weighted_sum(s.p_RV, gap_RV, scratch) - shift_R
    if s.empty_R is not None or t.empty_R is not None:
        kl_ts_R = _divergence_of_empty(kl_ts_R, holder=t, other=s)
        kl_st_R = _divergence_of_empty(kl_st_R, holder=s, other=t)
    stats |= {"kl_teacher_student": kl_ts_R, "kl_student_teacher": kl_st_R}
    if spec.jsd_beta is None and spec.entry_clip is None:
        return
    log_ratio_RV = gap_RV.add_(shift_R[:, None]).nan_to_num_(0.0, torch.inf, -torch.inf)
    if spec.entry_clip is not None:
        entry_RV = (t.p_RV * log_ratio_RV).masked_fill_(t.p_RV == 0, 0.0)
        clipped_RV = entry_RV > spec.entry_clip
        stats["clipped_kl_teacher_student"] = entry_RV.clamp_(max=spec.entry_clip).sum(-1)
        # 1 - (clipped mass), not the sum of the rest: exactly 1 where nothing is clipped.
        rows["unclipped_mass"] = 1.0 - t.p_RV.masked_fill(~clipped_RV, 0.0).sum(-1)
    if spec.jsd_beta is not None:
        beta = spec.jsd_beta
        m_over_s_RV, m_over_t_RV = _log_mixture_ratios(log_ratio_RV, beta)
        s_term_R = -_weighted_sum(s.p_RV, m_over_s_RV, scratch)
        t_term_R = -_weighted_sum(t.p_RV, m_over_t_RV, scratch)
        stats["jsd"] = beta * t_term_R + (1.0 - beta) * s_term_R
        rows["kl_student_mixture"] = s_term_R


def _divergence_of_empty(kl_R: Tensor, *, holder: _Softmax, other: _Softmax) -> Tensor:
    """KL(holder || other) where a row has no distribution: 0 if the holder has no mass, inf if only
    the other has.
    """
    none_R = torch.zeros_like(kl_R, dtype=torch.bool)
    if other.empty_R is not None:
        kl_R = kl_R.masked_fill(other.empty_R, torch.inf)
    return kl_R.masked_fill(none_R if holder.empty_R is None else holder.empty_R, 0.0)


def _log_mixture_ratios(log_ratio_RV: Tensor, beta: float) -> tuple[Tensor, Tensor]:
    """log(M/S) and log(M/T) for M = beta T + (1 - beta) S, from r = log(T/S): exactly 0 where r is
    0, finite for any r.

    With r > 0 factor e^r out of beta e^r + (1 - beta), so that the exponential never overflows.
    """
    # Tensors, since torch.where rounds plain numbers to the default dtype.
    share_t, share_s = log_ratio_RV.new_full((), beta), log_ratio_RV.new_full((), 1.0 - beta)
    weight_RV = torch.where(log_ratio_RV > 0, share_s, share_t)
    common_RV = torch.expm1(-log_ratio_RV.abs()).mul_(weight_RV).log1p_()
    return log_ratio_RV.clamp_min(0.0) + common_RV, (-log_ratio_RV).clamp_min(0.0) + common_RV


# --- backward -------------------------------------------------------------------------------------


def _backward_block(
    state: _State, coefs: dict[str, Tensor], lo: int, hi: int, out_CV: Tensor, scratch: _Scratch
) -> None:
    dtype, student, teacher = state.spec.compute_dtype, state.student, state.teacher
    c = {name: coef[lo:hi].to(dtype) for name, coef in coefs.items()}
    row = {name: value[lo:hi] for name, value in state.rows.items()}
    empty_R = _empty_rows(row["s_log_z"])
    t_empty_R = None if teacher is None else _empty_rows(row["t_log_z"])
    if t_empty_R is not None:
        # No distribution, no direction to move in.
        for name in c.keys() & set(_NEEDS_TEACHER_LOGITS):
            c[name] = c[name].masked_fill(t_empty_R, 0.0)
    x_RV = _reread(student, "student", lo, hi, row["s_pivot"], scratch)
    s_RV = _softmax(x_RV, empty_R, scratch("p_student", hi - lo))
    factor_RV = _student_factor(state, c, row, lo, hi, x_RV)
    dz_RV = torch.mul(s_RV, factor_RV, out=scratch("dz", hi - lo))
    if teacher is not None and any(name in c for name in _NEEDS_TEACHER_LOGITS):
        t_x_RV = _reread(teacher, "teacher", lo, hi, row["t_pivot"], scratch)
        t_RV = _softmax(t_x_RV, t_empty_R, scratch("p_teacher", hi - lo))
        log_ratio_RV = None
        if any(name in c for name in _NEEDS_LOG_RATIO):
            log_ratio_RV = torch.sub(t_x_RV, x_RV, out=scratch("gap", hi - lo))
            log_ratio_RV += (row["s_log_z"] - row["t_log_z"])[:, None]
            log_ratio_RV.nan_to_num_(0.0, torch.inf, -torch.inf)
        _add_divergences(dz_RV, c, row, state, lo, hi, s_RV, t_RV, log_ratio_RV)
    elif "entropy" in c:
        _zero_without_mass(dz_RV, s_RV)
    for name, ids_CK in (("logp", state.chosen_CK), ("topk_logp", state.stats.get("topk_ids"))):
        if name in c and ids_CK is not None:
            dz_RV.scatter_add_(-1, ids_CK[lo:hi], c[name])
    if empty_R is not None:
        dz_RV.masked_fill_(empty_R[:, None], 0.0)
    _through_transforms(dz_RV, student, x_RV, row["s_pivot"])
    out_CV[lo:hi] = dz_RV


_NEEDS_LOG_RATIO = ("kl_student_teacher", "jsd", "clipped_kl_teacher_student")
_NEEDS_TEACHER_LOGITS = ("kl_teacher_student", *_NEEDS_LOG_RATIO)


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
) -> None:
    """Add what involves the teacher. Products are rounded one by one: S == T gives exactly 0."""
    if "kl_student_teacher" in c:
        assert log_ratio_RV is not None
        coef_R = c["kl_student_teacher"]
        kl_R = state.stats["kl_student_teacher"][lo:hi]
        factor_RV = (log_ratio_RV + kl_R[:, None]).mul_(s_RV).mul_(coef_R[:, None])
        if not torch.isfinite(kl_R).all():
            # An infinite divergence of a token that the loss leaves out must not reach the weight.
            factor_RV.masked_fill_((coef_R == 0)[:, None], 0.0)
        dz_RV -= factor_RV
    if "jsd" in c:
        assert log_ratio_RV is not None
        assert state.spec.jsd_beta is not None
        beta = state.spec.jsd_beta
        m_over_s_RV, _ = _log_mixture_ratios(log_ratio_RV, beta)
        factor_RV = m_over_s_RV.add_(row["kl_student_mixture"][:, None])
        dz_RV -= factor_RV.mul_(s_RV).mul_((c["jsd"] * (1.0 - beta))[:, None])
    if log_ratio_RV is not None or "entropy" in c:
        _zero_without_mass(dz_RV, s_RV)
    if "clipped_kl_teacher_student" in c:
        assert log_ratio_RV is not None
        assert state.spec.entry_clip is not None
        entry_RV = (t_RV * log_ratio_RV).masked_fill_(t_RV == 0, 0.0)
        kept_RV = t_RV.masked_fill(entry_RV > state.spec.entry_clip, 0.0)
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
