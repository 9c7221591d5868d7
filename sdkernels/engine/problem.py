"""Everything the engine is given, checked once and laid out flat: `Problem`, and the forward of one
of its chunks.

Shape letters: T all tokens, N tokens left by the mask, C tokens of a chunk, V vocabulary, D hidden,
    K ids a token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdkernels.engine import topk as topk_lists
from sdkernels.engine.chunks import ChunkPlan, default_chunk_bytes, plan_chunks
from sdkernels.engine.heads import LMHead, as_head
from sdkernels.engine.linear import project
from sdkernels.engine.stats import Tokens, TokenStats, zeros_like_stat
from sdkernels.engine.teachers import HiddenTeacher, LogitsTeacher, Teacher, TopKTeacher
from sdkernels.rows import RowBackend, RowSpec, Side, resolve_backend

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


@dataclass
class Problem:
    """Checked inputs, flat over tokens; `kept_N` are the positions the mask leaves (None: all)."""

    hidden_TD: Tensor
    head: LMHead
    teacher: Teacher | None
    lead_shape: torch.Size
    ids_NK: Tensor | None
    one_id: bool
    tokens_T: dict[str, Tensor]
    kept_N: Tensor | None
    temperature: float
    teacher_temperature: float
    spec: RowSpec
    slab_dtype: torch.dtype
    backend: RowBackend
    plan: ChunkPlan
    check: bool
    gate: Any = None
    gate_T: dict[str, Tensor] | None = None

    @property
    def count(self) -> int:
        """Number of tokens that take part."""
        return self.hidden_TD.shape[0] if self.kept_N is None else self.kept_N.shape[0]

    def rows(self, tensor_T: Tensor, lo: int, hi: int) -> Tensor:
        """Rows lo..hi of the kept tokens of a flat tensor."""
        return tensor_T[lo:hi] if self.kept_N is None else tensor_T[self.kept_N[lo:hi]]

    def position(self, kept: int) -> tuple[int, ...]:
        """Index into the leading shape of kept token number `kept`, for messages."""
        flat = kept if self.kept_N is None else int(self.kept_N[kept])
        index = []
        for size in reversed(self.lead_shape):
            index.append(flat % size)
            flat //= size
        return tuple(reversed(index))

    def tokens(self, lo: int, hi: int) -> Tokens:
        """The caller's per-token tensors for one chunk."""
        return Tokens({name: self.rows(value, lo, hi) for name, value in self.tokens_T.items()})

    def slabs(self) -> tuple[Tensor, Tensor | None]:
        """Memory for the logits of one chunk, reused by all of them."""
        shape = (self.plan.chunk_tokens, self.head.vocab)
        device = self.hidden_TD.device
        student = torch.empty(shape, dtype=self.slab_dtype, device=device)
        if not isinstance(self.teacher, HiddenTeacher):
            return student, None
        return student, torch.empty(shape, dtype=self.slab_dtype, device=device)

    def forward_chunk(
        self, slabs: tuple[Tensor, Tensor | None], lo: int, hi: int
    ) -> tuple[dict[str, Tensor], Any, Tensor]:
        """Project and reduce tokens lo..hi: statistics, the backend's state, and the chunk's hidden
        states.
        """
        hidden_CD = self.rows(self.hidden_TD, lo, hi)
        student = self._project(hidden_CD, self.head, slabs[0], self.temperature)
        chosen_CK = None if self.ids_NK is None else self.ids_NK[lo:hi]
        support_CK, teacher_logp_CK = None, None
        teacher: Side | None = None
        if isinstance(self.teacher, HiddenTeacher):
            assert slabs[1] is not None
            teacher_hidden_CD = self.rows(_flat(self.teacher.hidden), lo, hi)
            teacher = self._project(
                teacher_hidden_CD, self.teacher.head, slabs[1], self.teacher_temperature
            )
        elif isinstance(self.teacher, LogitsTeacher):
            logits_CV = self.rows(_flat(self.teacher.logits), lo, hi)[:, : self.teacher.vocab]
            teacher = Side(logits_CV, temperature=self.teacher_temperature, owned=False)
        elif isinstance(self.teacher, TopKTeacher):
            support_CK = self.rows(_flat(self.teacher.ids), lo, hi)
            teacher_logp_CK = self.rows(_flat(self.teacher.logprobs), lo, hi)
        stats, state = self.backend.forward(student, teacher, chosen_CK, support_CK, self.spec)
        if teacher_logp_CK is not None:
            stats["teacher_topk_logp"] = teacher_logp_CK.to(self.spec.compute_dtype)
            if chosen_CK is not None:
                stats["teacher_logp"] = _look_up(stats, chosen_CK)
        if self.gate is not None:
            stats["direction"] = self._direction(stats, lo, hi)
        return stats, state, hidden_CD

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
            full = zeros_like_stat(tensor_N, self.hidden_TD.shape[0])
            tensor_N = full.index_copy(0, self.kept_N, tensor_N)
        return tensor_N.reshape(*self.lead_shape, *tensor_N.shape[1:])

    def _project(
        self, hidden_CD: Tensor, head: LMHead, slab_CV: Tensor, temperature: float
    ) -> Side:
        raw_CV = slab_CV[: hidden_CD.shape[0]]
        weight_VD = head.weight.detach()[: head.vocab]
        project(hidden_CD, weight_VD, raw_CV, self.spec.compute_dtype)
        bias_V = None if head.bias is None else head.bias.detach()[: head.vocab]
        return Side(raw_CV, bias_V, head.scale, head.softcap, temperature)

    def _direction(self, stats: dict[str, Tensor], lo: int, hi: int) -> Tensor:
        assert self.gate_T is not None
        chunk = {name: self.rows(value, lo, hi) for name, value in self.gate_T.items()}
        return self.gate.direction(stats["entropy"], chunk.get("tau"), chunk.get("sigma"))


def _flat(tensor: Tensor) -> Tensor:
    return tensor.detach().reshape(-1, tensor.shape[-1])


def _look_up(stats: dict[str, Tensor], chosen_CK: Tensor) -> Tensor:
    """Teacher log-prob of the chosen ids where the top-k list has them, NaN elsewhere: unknown, not
    zero.
    """
    match = chosen_CK[:, :, None] == stats["topk_ids"][:, None, :]
    known = torch.where(match, stats["teacher_topk_logp"][:, None, :], 0.0).sum(-1)
    return known.masked_fill(~match.any(-1), torch.nan)


# --- checks ---------------------------------------------------------------------------------------


def build_problem(
    hidden: Tensor,
    head: LMHead | Tensor,
    *,
    targets: Tensor | None,
    teacher: Teacher | None,
    tokens: Mapping[str, Tensor] | None,
    mask: Tensor | None,
    temperature: float,
    teacher_temperature: float | None,
    jsd_beta: float | None,
    entry_clip: float | None,
    topk: int | None,
    topk_of: str,
    chunk_bytes: int | None,
    slab_dtype: str,
    backend: str,
    debug: bool,
) -> Problem:
    """Check every argument of the public functions and lay them out; see `token_loss` for their
    meaning.
    """
    head = as_head(head)
    if not isinstance(hidden, Tensor):
        raise TypeError(f"hidden: expected a tensor [..., D], got {type(hidden).__name__}")
    if hidden.dtype not in _FLOATS:
        raise TypeError(
            f"hidden has dtype {hidden.dtype}: accepted are float64, float32, bfloat16, float16"
        )
    if hidden.dim() < 1 or hidden.shape[-1] != head.hidden_size:
        raise ValueError(
            f"hidden: expected [..., D] with D = {head.hidden_size} of the head, got "
            f"{list(hidden.shape)}"
        )
    device, lead = hidden.device, hidden.shape[:-1]
    _same_device("head.weight", head.weight, device)
    hidden_TD = hidden.detach().reshape(-1, hidden.shape[-1])
    check = debug or device.type == "cpu"
    kept_N = _kept(mask, lead, device)
    if not (isinstance(temperature, (int, float)) and 0 < temperature < math.inf):
        raise ValueError(f"temperature={temperature!r}: expected a finite number above 0")
    teacher_temperature = temperature if teacher_temperature is None else teacher_temperature
    if not (isinstance(teacher_temperature, (int, float)) and 0 < teacher_temperature < math.inf):
        raise ValueError(
            f"teacher_temperature={teacher_temperature!r}: expected a finite number above 0"
        )
    ids_NK, one_id = _ids(targets, lead, head, kept_N, device, check)
    _check_teacher(teacher, lead, head, device, check)
    spec = _spec(hidden, head, teacher, jsd_beta, entry_clip, topk, topk_of)
    if slab_dtype not in ("float32", "model"):
        raise ValueError(f"slab_dtype={slab_dtype!r}: accepted are 'float32' and 'model'")
    slab = hidden.dtype if slab_dtype == "model" else spec.compute_dtype
    rows = resolve_backend(backend, device)
    count = hidden_TD.shape[0] if kept_N is None else kept_N.shape[0]
    slab_count = 2 if isinstance(teacher, HiddenTeacher) else 1
    plan = plan_chunks(
        count,
        slab_count * head.vocab * slab.itemsize,
        rows.scratch_bytes(head.vocab, spec.compute_dtype),
        default_chunk_bytes(device) if chunk_bytes is None else chunk_bytes,
    )
    return Problem(
        hidden_TD=hidden_TD,
        head=head,
        teacher=teacher,
        lead_shape=lead,
        ids_NK=ids_NK,
        one_id=one_id,
        tokens_T=_tokens(tokens, lead, device),
        kept_N=kept_N,
        temperature=float(temperature),
        teacher_temperature=float(teacher_temperature),
        spec=spec,
        slab_dtype=slab,
        backend=rows,
        plan=plan,
        check=check,
    )


def _same_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, hidden on {device}: move one of them")


def _kept(mask: Tensor | None, lead: torch.Size, device: torch.device) -> Tensor | None:
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool:
        came = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(f"mask: expected a bool tensor of shape {list(lead)}, got {came}")
    if mask.shape != lead:
        raise ValueError(
            f"mask: expected shape {list(lead)} (that of the tokens), got {list(mask.shape)}"
        )
    _same_device("mask", mask, device)
    return mask.reshape(-1).nonzero().squeeze(-1)


def _ids(
    targets: Tensor | None,
    lead: torch.Size,
    head: LMHead,
    kept_N: Tensor | None,
    device: torch.device,
    check: bool,
) -> tuple[Tensor | None, bool]:
    if targets is None:
        return None, False
    if not isinstance(targets, Tensor) or targets.dtype not in (torch.int64, torch.int32):
        came = targets.dtype if isinstance(targets, Tensor) else type(targets).__name__
        raise TypeError(f"targets: expected int64 or int32 token ids, got {came}")
    one_id = targets.shape == lead
    if not one_id and (targets.dim() != len(lead) + 1 or targets.shape[:-1] != lead):
        raise ValueError(
            f"targets: expected shape {list(lead)}, or {[*lead, 'K']} for K ids a token, got "
            f"{list(targets.shape)}"
        )
    _same_device("targets", targets, device)
    ids_NK = targets.reshape(lead.numel(), 1 if one_id else targets.shape[-1]).long()
    if kept_N is not None:
        ids_NK = ids_NK[kept_N]
    if check and ids_NK.numel():
        bad = ((ids_NK < 0) | (ids_NK >= head.vocab)).nonzero()
        if bad.numel():
            row, column = bad[0].tolist()
            raise ValueError(
                f"targets: id {int(ids_NK[row, column])} (token {row} of those kept) is outside "
                "the vocabulary "
                f"0..{head.vocab - 1}; leave padding such as -100 out with mask="
            )
    return ids_NK, one_id


def _check_teacher(
    teacher: Teacher | None, lead: torch.Size, head: LMHead, device: torch.device, check: bool
) -> None:
    if teacher is None:
        return
    if isinstance(teacher, TopKTeacher):
        _same_device("teacher.ids", teacher.ids, device)
        _same_device("teacher.logprobs", teacher.logprobs, device)
        if check and teacher.ids.numel():
            low, high = int(teacher.ids.min()), int(teacher.ids.max())
            if low < 0 or high >= head.vocab:
                raise ValueError(
                    f"teacher.ids: ids span {low}..{high}, the student's vocabulary is "
                    f"0..{head.vocab - 1}"
                )
    elif isinstance(teacher, HiddenTeacher):
        _same_device("teacher.hidden", teacher.hidden, device)
        _same_device("teacher.head.weight", teacher.head.weight, device)
        _same_vocabulary(teacher.head.vocab, head.vocab)
    elif isinstance(teacher, LogitsTeacher):
        _same_device("teacher.logits", teacher.logits, device)
        _same_vocabulary(teacher.vocab, head.vocab)
    else:
        raise TypeError(
            "teacher: expected a HiddenTeacher, LogitsTeacher or TopKTeacher, got "
            f"{type(teacher).__name__}"
        )
    if teacher.lead_shape != lead:
        raise ValueError(
            f"teacher: tokens of shape {list(teacher.lead_shape)}, the student's are {list(lead)}; "
            "both must describe the same tokens"
        )


def _same_vocabulary(teacher_vocab: int, student_vocab: int) -> None:
    if teacher_vocab != student_vocab:
        raise ValueError(
            f"vocabulary mismatch: student {student_vocab}, teacher {teacher_vocab}. If the "
            "tokenizers are the same "
            "and the rest is padding, pass the number of real entries as valid_vocab= on both heads"
        )


def _spec(
    hidden: Tensor,
    head: LMHead,
    teacher: Teacher | None,
    jsd_beta: float | None,
    entry_clip: float | None,
    topk: int | None,
    topk_of: str,
) -> RowSpec:
    for name, value in (("jsd_beta", jsd_beta), ("entry_clip", entry_clip)):
        if value is not None and teacher is None:
            raise ValueError(f"{name}={value!r} needs a teacher=")
    if jsd_beta is not None and not 0 < jsd_beta < 1:
        raise ValueError(
            f"jsd_beta={jsd_beta!r}: expected a number strictly between 0 and 1 (the limits of "
            "JSD are 0, not the KLs: "
            "use kl_teacher_student or kl_student_teacher for those)"
        )
    if entry_clip is not None and not entry_clip > 0:
        raise ValueError(
            f"entry_clip={entry_clip!r}: expected a number above 0, in nats per vocabulary entry"
        )
    if topk_of not in ("student", "teacher"):
        raise ValueError(f"topk_of={topk_of!r}: accepted are 'student' and 'teacher'")
    if topk is not None:
        if isinstance(teacher, TopKTeacher):
            raise ValueError(f"topk={topk!r}: a TopKTeacher brings its own ids; leave topk out")
        if not 1 <= topk <= head.vocab:
            raise ValueError(f"topk={topk!r}: expected 1 to V = {head.vocab}")
        if topk_of == "teacher" and teacher is None:
            raise ValueError("topk_of='teacher' needs a teacher=")
    double = torch.float64 in (hidden.dtype, head.weight.dtype)
    return RowSpec(torch.float64 if double else torch.float32, jsd_beta, entry_clip, topk, topk_of)


def _tokens(
    tokens: Mapping[str, Tensor] | None, lead: torch.Size, device: torch.device
) -> dict[str, Tensor]:
    flat = {}
    for name, value in (tokens or {}).items():
        if not isinstance(value, Tensor):
            raise TypeError(f"tokens[{name!r}]: expected a tensor, got {type(value).__name__}")
        if value.shape[: len(lead)] != lead:
            raise ValueError(
                f"tokens[{name!r}]: expected shape {list(lead)} (or more dimensions behind), got "
                f"{list(value.shape)}"
            )
        if value.requires_grad:
            raise ValueError(
                f"tokens[{name!r}] requires grad, but no gradient flows into tokens=; pass it "
                ".detach()-ed, "
                "or write the loss outside with token_stats"
            )
        _same_device(f"tokens[{name!r}]", value, device)
        flat[name] = value.reshape(lead.numel(), *value.shape[len(lead) :])
    return flat
