"""Checks every argument of the public functions once, and lays them out as a `Problem`.

Shape letters: N tokens left by the mask, V vocabulary, D hidden, K ids a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sdkernels.engine.chunks import (
    default_chunk_bytes,
    logits_gradient_dtype,
    plan_chunks,
    token_bytes,
)
from sdkernels.engine.heads import LMHead, as_head, is_dtensor
from sdkernels.engine.linear import cast_rows_within
from sdkernels.engine.problem import Problem, flat_view
from sdkernels.engine.scalars import above_zero, is_whole_number
from sdkernels.engine.sharding import check_same_everywhere
from sdkernels.engine.spec import row_spec
from sdkernels.engine.teachers import HiddenTeacher, LogitsTeacher, Teacher, TopKTeacher
from sdkernels.rows import resolve_backend, slab_columns

_FLOATS = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


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
    _check_hidden(hidden, head)
    device, lead = hidden.device, hidden.shape[:-1]
    check = debug or device.type == "cpu"
    kept_N = _kept(mask, lead, device, check)
    temperature = above_zero("temperature", temperature)
    if teacher_temperature is not None:
        teacher_temperature = above_zero("teacher_temperature", teacher_temperature)
        if isinstance(teacher, TopKTeacher):
            raise ValueError(
                f"teacher_temperature={teacher_temperature!r}: the log-probs of a TopKTeacher are "
                "taken as they are; ask the server for log-probs at that temperature"
            )
    ids_NK, one_id = _ids(targets, lead, head, kept_N, device, check)
    _check_teacher(teacher, lead, head, device, check)
    spec = row_spec(hidden, head, teacher, jsd_beta, entry_clip, topk, topk_of)
    if slab_dtype not in ("float32", "model"):
        raise ValueError(f"slab_dtype={slab_dtype!r}: accepted are 'float32' and 'model'")
    slab = hidden.dtype if slab_dtype == "model" else spec.compute_dtype
    rows = resolve_backend(backend, device, spec.compute_dtype)
    _check_read(teacher, rows.name)
    dz_dtype = logits_gradient_dtype(rows.name, hidden.dtype, head.weight.dtype)
    spec = replace(spec, gradient_dtype=dz_dtype)
    budget_bytes = _budget(chunk_bytes, device, head)
    teacher_size = _teacher_size(teacher)
    widest = max(head.hidden_size, teacher_size)
    cast_rows = cast_rows_within(budget_bytes, widest, spec.compute_dtype)
    # Chunks must be the same on every rank, so they are planned for the widest slice.
    columns = head.vocab if head.shard is None else head.shard.widest
    columns = slab_columns(columns) if rows.name == "triton" else columns
    if check and head.shard is not None:
        check_same_everywhere(
            head.shard,
            {"hidden": hidden, "head.weight": head.weight, "head.bias": head.bias},
            {"hidden": hidden, "targets": ids_NK, "mask": kept_N} if debug else {},
            {"chunk_bytes": budget_bytes, "temperature": temperature},
        )
    return Problem(
        hidden=hidden.detach(),
        head=head,
        teacher=teacher,
        lead_shape=lead,
        ids_NK=ids_NK,
        one_id=one_id,
        per_token=_tokens(tokens, lead, device),
        kept_N=kept_N,
        temperature=temperature,
        teacher_temperature=temperature if teacher_temperature is None else teacher_temperature,
        spec=spec,
        slab_dtype=slab,
        backend=rows,
        plan=plan_chunks(
            lead.numel() if kept_N is None else kept_N.shape[0],
            token_bytes(
                vocab=columns,
                hidden_size=head.hidden_size,
                teacher_size=teacher_size,
                slab_dtype=slab,
                spec=spec,
                cast_rows=cast_rows,
                copied_bytes=_copied_bytes(teacher, kept_N, columns, head),
            ),
            lambda chunk: rows.scratch_bytes(chunk, columns, spec),
            budget_bytes,
        ),
        budget_bytes=budget_bytes,
        cast_rows=cast_rows,
        check=check,
        grad_enabled=torch.is_grad_enabled(),
    )


# --- memory ---------------------------------------------------------------------------------------


def _budget(chunk_bytes: int | None, device: torch.device, head: LMHead) -> int:
    if chunk_bytes is None and head.shard is not None:
        return head.shard.budget_bytes
    if chunk_bytes is None:
        return default_chunk_bytes(device)
    if not is_whole_number(chunk_bytes):
        raise TypeError(f"chunk_bytes={chunk_bytes!r}: expected a whole number of bytes, or None")
    if chunk_bytes <= 0:
        raise ValueError(f"chunk_bytes={chunk_bytes}: expected a number of bytes above 0, or None")
    return int(chunk_bytes)


def _teacher_size(teacher: Teacher | None) -> int:
    return teacher.head.hidden_size if isinstance(teacher, HiddenTeacher) else 0


def _copied_bytes(
    teacher: Teacher | None, kept_N: Tensor | None, columns: int, head: LMHead
) -> int:
    """Bytes of a token's teacher logits that a chunk has to copy."""
    if not isinstance(teacher, LogitsTeacher):
        return 0
    if head.shard is not None:
        return columns * teacher.logits.dtype.itemsize
    if kept_N is None and flat_view(teacher.logits, teacher.lead_shape) is not None:
        return 0
    return teacher.logits.shape[-1] * teacher.logits.dtype.itemsize


# --- tensors --------------------------------------------------------------------------------------


def _check_hidden(hidden: Any, head: LMHead) -> None:
    if not isinstance(hidden, Tensor):
        raise TypeError(f"hidden: expected a tensor [..., D], got {type(hidden).__name__}")
    if hidden.is_nested or hidden.layout != torch.strided:
        raise TypeError(
            f"hidden: expected a dense tensor [..., D], got a {_kind(hidden)} one; a jagged nested "
            "tensor has its tokens as hidden.values()"
        )
    if is_dtensor(hidden):
        raise TypeError(
            "hidden is a DTensor: pass this rank's tokens with hidden.to_local() (tokens sharded), "
            "or hidden.full_tensor()"
        )
    if hidden.dtype not in _FLOATS:
        raise TypeError(
            f"hidden has dtype {hidden.dtype}: accepted are float64, float32, bfloat16, float16"
        )
    if hidden.dim() < 1 or hidden.shape[-1] != head.hidden_size:
        raise ValueError(
            f"hidden: expected [..., D] with D = {head.hidden_size} of the head, got "
            f"{list(hidden.shape)}"
        )
    _same_device("head.weight", head.weight, hidden.device)


def _kind(tensor: Tensor) -> str:
    return "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.")


def _same_device(name: str, tensor: Tensor, device: torch.device) -> None:
    if tensor.device != device:
        raise ValueError(f"{name} is on {tensor.device}, hidden on {device}: move one of them")


def _kept(
    mask: Tensor | None, lead: torch.Size, device: torch.device, check: bool
) -> Tensor | None:
    """Flat positions of the tokens that are left; of a bool mask their number has to be known on
    the host, which is the one synchronisation.
    """
    if mask is None:
        return None
    if not isinstance(mask, Tensor) or mask.dtype not in (torch.bool, torch.int64):
        came = mask.dtype if isinstance(mask, Tensor) else type(mask).__name__
        raise TypeError(
            f"mask: expected a bool tensor of shape {list(lead)}, or int64 positions [N] of the "
            f"tokens to keep, got {came}"
        )
    _same_device("mask", mask, device)
    if mask.dtype == torch.int64:
        return _positions(mask, lead.numel(), check)
    if mask.shape != lead:
        raise ValueError(
            f"mask: expected shape {list(lead)} (that of the tokens), got {list(mask.shape)}"
        )
    return mask.reshape(-1).nonzero().squeeze(-1)


def _positions(mask: Tensor, total: int, check: bool) -> Tensor:
    if mask.dim() != 1:
        raise ValueError(f"mask: positions are expected as [N], got {list(mask.shape)}")
    # As many as there are tokens may be a mask of 0 and 1, which must not pass for positions.
    if (check or mask.numel() == total) and mask.numel():
        rising = bool((mask[1:] > mask[:-1]).all())
        if not rising or int(mask[0]) < 0 or int(mask[-1]) >= total:
            raise ValueError(
                f"mask: positions must rise and lie in 0..{total - 1}, the tokens counted through "
                "all leading dimensions of hidden; a mask of 0 and 1 is passed as mask.bool()"
            )
    return mask


def mask_of(mask: Tensor, lead: torch.Size) -> Tensor:
    """The bool mask `[*lead]` of either form, without a synchronisation."""
    if mask.dtype == torch.bool:
        return mask
    kept = torch.zeros(lead.numel(), dtype=torch.bool, device=mask.device)
    return kept.index_fill_(0, mask, True).reshape(lead)


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
        bad = ((ids_NK < 0) | (ids_NK >= head.total_vocab)).nonzero()
        if bad.numel():
            row, column = bad[0].tolist()
            raise ValueError(
                f"targets: id {int(ids_NK[row, column])} (token {row} of those kept) is outside "
                "the vocabulary "
                f"0..{head.total_vocab - 1}; leave padding such as -100 out with mask="
            )
    return ids_NK, one_id


def _check_teacher(
    teacher: Teacher | None, lead: torch.Size, head: LMHead, device: torch.device, check: bool
) -> None:
    if teacher is None:
        return
    if isinstance(teacher, TopKTeacher):
        _same_device("teacher.ids", teacher.ids, device)
        if check and teacher.ids.numel():
            low, high = int(teacher.ids.min()), int(teacher.ids.max())
            if low < 0 or high >= head.total_vocab:
                raise ValueError(
                    f"teacher.ids: ids span {low}..{high}, the student's vocabulary is "
                    f"0..{head.total_vocab - 1}"
                )
    elif isinstance(teacher, HiddenTeacher):
        _same_device("teacher.hidden", teacher.hidden, device)
        _same_device("teacher.head.weight", teacher.head.weight, device)
        _same_slices(teacher.head, head)
        _same_vocabulary(teacher.head.vocab, head.vocab)
    elif isinstance(teacher, LogitsTeacher):
        _same_device("teacher.logits", teacher.logits, device)
        if head.shard is None or teacher.logits.shape[-1] != head.weight.shape[0]:
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


def _check_read(teacher: Teacher | None, backend: str) -> None:
    """Logits that come from outside have a dtype that the rows read."""
    if not isinstance(teacher, LogitsTeacher) or backend != "triton":
        return
    if teacher.logits.dtype == torch.float64:
        raise TypeError(
            "teacher.logits has dtype float64: the Triton rows, which run here, read float32, "
            "bfloat16 and float16; pass teacher logits .float(), or backend='torch'"
        )


def _same_slices(teacher: LMHead, student: LMHead) -> None:
    slices = [
        None if head.shard is None else (head.shard.first, head.shard.sizes)
        for head in (teacher, student)
    ]
    if slices[0] != slices[1]:
        raise ValueError(
            "teacher.head: its vocabulary must be split like the student's (same group=, same "
            f"slices); first entry and sizes by rank are {slices[0]} of the teacher, {slices[1]} "
            "of the student (None: not split)"
        )


def _same_vocabulary(teacher_vocab: int, student_vocab: int) -> None:
    if teacher_vocab != student_vocab:
        raise ValueError(
            f"vocabulary mismatch: student {student_vocab}, teacher {teacher_vocab}. If the "
            "tokenizers are the same "
            "and the rest is padding, pass the number of real entries as valid_vocab= on both heads"
        )


def _tokens(
    tokens: Mapping[str, Tensor] | None, lead: torch.Size, device: torch.device
) -> dict[str, Tensor]:
    if tokens is not None and not isinstance(tokens, Mapping):
        raise TypeError(f"tokens: expected a dict of tensors by name, got {type(tokens).__name__}")
    checked = {}
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
        checked[name] = value
    return checked
