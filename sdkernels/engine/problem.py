"""`Problem`: everything the engine is given, and the forward pass of one chunk of its tokens.

Shape letters: T all tokens, N tokens left by the mask, C tokens of a chunk, V vocabulary, D hidden,
    K ids a token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdkernels.engine import topk as topk_lists
from sdkernels.engine.chunks import ChunkPlan
from sdkernels.engine.heads import LMHead
from sdkernels.engine.linear import hidden_gradient, project
from sdkernels.engine.row_scale import row_scales, scaled_coefs
from sdkernels.engine.stats import Tokens, TokenStats, zeros_like_stat
from sdkernels.engine.teachers import HiddenTeacher, LogitsTeacher, Teacher, TopKTeacher
from sdkernels.rows import RowBackend, RowGate, RowSpec, Side, slab_columns
from sdkernels.rows.pages import large_empty


@dataclass
class Problem:
    """Checked inputs. Tensors with a value per token keep the leading shape that the caller gave
    them; `kept_N` are the flat positions that the mask leaves (None: all).
    """

    hidden: Tensor
    head: LMHead
    teacher: Teacher | None
    lead_shape: torch.Size
    ids_NK: Tensor | None
    one_id: bool
    per_token: dict[str, Tensor]
    kept_N: Tensor | None
    temperature: float
    teacher_temperature: float
    spec: RowSpec
    slab_dtype: torch.dtype
    backend: RowBackend
    plan: ChunkPlan
    budget_bytes: int
    cast_rows: int
    check: bool
    grad_enabled: bool
    slab_free: bool = False
    gate: Any = None
    gate_thresholds: dict[str, Tensor] | None = None

    @property
    def device(self) -> torch.device:
        """Where everything is."""
        return self.hidden.device

    @property
    def total(self) -> int:
        """Number of tokens, those that the mask leaves out included."""
        return self.lead_shape.numel()

    def rows(self, tensor: Tensor, lo: int, hi: int) -> Tensor:
        """Kept tokens lo..hi of a per-token tensor `[*lead, ...]`.

        A view that can't be flattened (logits[:, :-1]) is never copied as a whole.
        """
        flat = flat_view(tensor, self.lead_shape)
        if flat is not None:
            return flat[lo:hi] if self.kept_N is None else flat[self.kept_N[lo:hi]]
        if self.kept_N is None:
            where = torch.arange(lo, hi, device=tensor.device)
        else:
            where = self.kept_N[lo:hi]
        return tensor[_index(where, self.lead_shape)]

    def constants(self) -> list[Tensor]:
        """The tensors besides the student's that a recomputation reads again."""
        found: list[Tensor | None] = [self.ids_NK]
        if isinstance(self.teacher, HiddenTeacher):
            head = self.teacher.head
            found += [self.teacher.hidden, head.weight.detach()]
            found += [None if head.bias is None else head.bias.detach()]
        elif isinstance(self.teacher, LogitsTeacher):
            found += [self.teacher.logits]
        elif isinstance(self.teacher, TopKTeacher):
            found += [self.teacher.ids]
        return [tensor for tensor in found if tensor is not None]

    def position(self, kept: int) -> tuple[int, ...]:
        """Index into the leading shape of kept token number `kept`, for messages."""
        return _index(kept if self.kept_N is None else int(self.kept_N[kept]), self.lead_shape)

    def tokens(self, lo: int, hi: int) -> Tokens:
        """The caller's per-token tensors for one chunk."""
        return Tokens({name: self.rows(value, lo, hi) for name, value in self.per_token.items()})

    def slabs(self) -> Tensor:
        """Memory for the logits of one chunk, reused by all of them: the student's rows, and below
        them the teacher's if its logits are made here.
        """
        if self.slab_free:
            return torch.empty((0, self.head.vocab), dtype=self.slab_dtype, device=self.device)
        rows = self.plan.chunk_tokens * (2 if isinstance(self.teacher, HiddenTeacher) else 1)
        columns = slab_columns(self.head.vocab) if self.padded else self.head.vocab
        slab = large_empty((rows, columns), dtype=self.slab_dtype, device=self.device)
        return slab[:, : self.head.vocab]

    @property
    def padded(self) -> bool:
        """Whether slabs have whole vectors, see `rows.slab_columns`; the CPU does without."""
        return self.backend.name == "triton"

    def forward_chunk(
        self, slabs: Tensor, lo: int, hi: int
    ) -> tuple[dict[str, Tensor], Any, Tensor]:
        """Project and reduce tokens lo..hi: statistics, the backend's state (None without a slab),
        and the chunk's hidden states.
        """
        hidden_CD = self.rows(self.hidden, lo, hi)
        if self.slab_free:
            return self._fused_chunk(hidden_CD, lo, hi), None, hidden_CD
        count = hi - lo
        student = self._side(self.head, slabs[:count], self.temperature)
        chosen_CK = None if self.ids_NK is None else self.ids_NK[lo:hi]
        support_CK, teacher_logp_CK = None, None
        teacher: Side | None = None
        if isinstance(self.teacher, HiddenTeacher):
            teacher_hidden_CD = self.rows(self.teacher.hidden, lo, hi)
            teacher = self._side(
                self.teacher.head, slabs[count : 2 * count], self.teacher_temperature
            )
            if self._one_product(hidden_CD, teacher_hidden_CD, self.teacher.head):
                stacked = torch.cat([hidden_CD, teacher_hidden_CD])
                self._project(stacked, self.head, slabs[: 2 * count])
            else:
                self._project(hidden_CD, self.head, student.raw_CV)
                self._project(teacher_hidden_CD, self.teacher.head, teacher.raw_CV)
        else:
            self._project(hidden_CD, self.head, student.raw_CV)
        if isinstance(self.teacher, LogitsTeacher):
            logits_CV = self.rows(self.teacher.logits, lo, hi)[:, : self.head.vocab]
            teacher = Side(logits_CV, temperature=self.teacher_temperature, owned=False)
        elif isinstance(self.teacher, TopKTeacher):
            support_CK = self.rows(self.teacher.ids, lo, hi)
            teacher_logp_CK = self.rows(self.teacher.logprobs, lo, hi)
        stats, state = self.backend.forward(
            student, teacher, chosen_CK, support_CK, self.spec, self._row_gate(lo, hi)
        )
        if teacher_logp_CK is not None:
            stats["teacher_topk_logp"] = teacher_logp_CK.to(self.spec.compute_dtype)
            if chosen_CK is not None:
                stats["teacher_logp"] = _look_up(stats, chosen_CK)
        return stats, state, hidden_CD

    def _fused_chunk(self, hidden_CD: Tensor, lo: int, hi: int) -> dict[str, Tensor]:
        """Statistics of the student alone, without its logits in memory."""
        assert self.backend.fused is not None
        return self.backend.fused.forward(
            hidden_CD,
            self.head.weight.detach()[: self.head.vocab],
            # The transforms of the logits; there is no slab to hold them.
            self._side(self.head, hidden_CD[:0], self.temperature),
            None if self.ids_NK is None else self.ids_NK[lo:hi],
            self.spec,
            self._row_gate(lo, hi),
        )

    def logits_gradient(
        self, state: Any, coefs: dict[str, Tensor], stats: dict[str, Tensor]
    ) -> tuple[Tensor, Tensor | None]:
        """Gradient of a chunk's raw logits, `[C, V]`, for one coefficient per token and statistic,
        and what each row of it has been multiplied by (None: nothing). `state` and `stats` are
        those of `forward_chunk`.
        """
        if (self.spec.gradient_dtype or self.slab_dtype) != torch.float16:
            return self.backend.backward(state, coefs), None
        scale_C = row_scales(coefs, self.head.scale / self.temperature, stats)
        return self.backend.backward(state, scaled_coefs(coefs, scale_C)), scale_C

    def hidden_gradient(self, dz_CV: Tensor, scale_C: Tensor | None) -> Tensor:
        """Gradient of a chunk's hidden states from `logits_gradient`, `[C, D]` in the compute
        dtype; complete on every rank where the vocabulary is split.
        """
        weight_VD = self.head.weight.detach()[: self.head.vocab]
        part_CD = hidden_gradient(
            dz_CV, weight_VD, self.spec.compute_dtype, cast_rows=self.cast_rows
        )
        if scale_C is not None:
            part_CD /= scale_C[:, None]
        return part_CD if self.spec.shard is None else self.spec.shard.add_up(part_CD)

    def user_stats(self, stats: dict[str, Tensor]) -> TokenStats:
        """Statistics as the caller sees them: one chosen id has no K axis, a top-k teacher's
        divergences are added.
        """
        fields = dict(stats)
        if self.one_id:
            for name in ("logp", "teacher_logp"):
                if name in fields:
                    fields[name] = fields[name].squeeze(-1)
        if isinstance(self.teacher, TopKTeacher):
            fields |= topk_lists.derived_statistics(
                fields["topk_logp"],
                fields["teacher_topk_logp"],
                tail=self.teacher.tail,
                jsd_beta=self.spec.jsd_beta,
                entry_clip=self.spec.entry_clip,
            )
        return TokenStats(fields)

    def restore(self, tensor_N: Tensor) -> Tensor:
        """A per-token tensor in the caller's leading shape, 0 where the mask left a token out."""
        if self.kept_N is not None:
            full = zeros_like_stat(tensor_N, self.total)
            tensor_N = full.index_copy(0, self.kept_N, tensor_N)
        return tensor_N.reshape(self.lead_shape + tensor_N.shape[1:])

    def _project(self, hidden_CD: Tensor, head: LMHead, out_CV: Tensor) -> None:
        weight_VD = head.weight.detach()[: head.vocab]
        project(hidden_CD, weight_VD, out_CV, self.spec.compute_dtype, cast_rows=self.cast_rows)

    def _one_product(self, hidden_CD: Tensor, teacher_hidden_CD: Tensor, head: LMHead) -> bool:
        """Whether both models are projected by one weight, which one stacked product reads once.

        Not on the CPU: its kernels treat the last rows of a product differently, and equal hidden
        states would no longer give equal logits.
        """
        return (
            self.device.type == "cuda"
            and head.weight.data_ptr() == self.head.weight.data_ptr()
            and head.weight.shape == self.head.weight.shape
            and head.weight.stride() == self.head.weight.stride()
            and head.weight.dtype == self.head.weight.dtype
            and teacher_hidden_CD.dtype == hidden_CD.dtype
        )

    def _side(self, head: LMHead, raw_CV: Tensor, temperature: float) -> Side:
        bias_V = None if head.bias is None else head.bias.detach()[: head.vocab]
        return Side(raw_CV, bias_V, head.scale, head.softcap, temperature, padded=self.padded)

    def _row_gate(self, lo: int, hi: int) -> RowGate | None:
        if self.gate is None:
            return None
        assert self.gate_thresholds is not None
        chunk = {name: self.rows(value, lo, hi) for name, value in self.gate_thresholds.items()}
        rule = getattr(self.gate, "rule", None)
        return RowGate(self.gate.direction, chunk.get("tau"), chunk.get("sigma"), rule)


def _index(flat: Any, lead: torch.Size) -> tuple[Any, ...]:
    """Index into the leading shape for flat positions, a number or a tensor of them.

    Not `torch.unravel_index`, which sends the sizes to the device each time, and waits for it.
    """
    index = []
    for size in reversed(lead):
        index.append(flat % size)
        flat = flat // size
    return tuple(reversed(index))


def flat_view(tensor: Tensor, lead: torch.Size) -> Tensor | None:
    """`[T, ...]` of a tensor `[*lead, ...]`; None where that would take a copy."""
    try:
        return tensor.view(lead.numel(), *tensor.shape[len(lead) :])
    except RuntimeError:
        return None


def _look_up(stats: dict[str, Tensor], chosen_CK: Tensor) -> Tensor:
    """Teacher log-prob of the chosen ids where the top-k list has them, NaN elsewhere: unknown, not
    zero.
    """
    match = chosen_CK[:, :, None] == stats["topk_ids"][:, None, :]
    known = torch.where(match, stats["teacher_topk_logp"][:, None, :], 0.0).sum(-1)
    return known.masked_fill(~match.any(-1), torch.nan)
