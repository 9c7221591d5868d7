"""One optimisation step's rollouts as rows, and micro-batches of them as tensors.

A row is one rollout with the ids of its two prompts. A micro-batch packs the response tokens of its
rows: the hidden states that predict them become `[N, D]`, and everything per token has N entries.

Shape letters: B rows, S sequence positions, L response tokens of a row, N packed response tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from sdkernels.contexts.types import Example, Message, Rollout
from sdkernels.train.sides import Side, check_same_responses, make_side


# Rows are told apart by identity: two rollouts of a prompt may be the same token by token.
@dataclass(eq=False)
class Row:
    """One rollout. `teacher_prompt_ids` is None where the context gave no signal or no teacher is
    needed.

    `weights` are the per-token weights of the aggregation over the whole optimisation step, 0 where
    a token is left out. `old_logp` and `entropy` `[L]` (nats, float32, CPU) are those of the policy
    that sampled, where later steps need them; `sampler_logp` is what the sampler itself gave.
    `negative_prompt_ids` are the prompts of the contrasting teacher, none or several; `error_start`
    is the index of the token from which the response is wrong, 0 where that is not known.
    """

    example: Example
    rollout: Rollout
    prompt_ids: list[int]
    teacher_prompt_ids: list[int] | None = None
    teacher_messages: list[Message] | None = None
    advantage: float = 0.0
    weights: list[float] = field(default_factory=list)
    counts: list[bool] = field(default_factory=list)
    old_logp: Tensor | None = None
    entropy: Tensor | None = None
    sampler_logp: Tensor | None = None
    negative_prompt_ids: list[list[int]] = field(default_factory=list)
    error_start: int = 0

    @property
    def response_ids(self) -> list[int]:
        """The sampled ids; the same list serves student and teacher."""
        return self.rollout.token_ids

    @property
    def has_tokens(self) -> bool:
        """Whether any token of the row is trained on."""
        return any(self.counts)


@dataclass
class NegativeSide:
    """One contrasting prompt of each row that has it; `token_n` says which of the N packed tokens
    its predictions are of.
    """

    side: Side
    token_n: Tensor


@dataclass
class MicroBatch:
    """Tensors of some rows. `row_N`, `column_N` place each packed token in `[B, L]`; `keep_N` says
    which count; `signal_N` is 1 where the teacher has a context of its own.

    `strength`, `batch_mean` and `teacher_says` are set for a whole optimisation step (see
    `method_passes`).
    """

    rows: list[Row]
    student: Side
    teacher: Side | None
    target_N: Tensor
    keep_N: Tensor
    row_N: Tensor
    column_N: Tensor
    weight_N: Tensor
    advantage_N: Tensor
    success_N: Tensor
    longest: int
    old_logp_N: Tensor | None = None
    entropy_N: Tensor | None = None
    sampler_logp_N: Tensor | None = None
    signal_N: Tensor | None = None
    negatives: list[NegativeSide] = field(default_factory=list)
    strength: float = 1.0
    batch_mean: float | None = None
    teacher_says: Any = None

    @property
    def num_tokens(self) -> int:
        """Tokens that take part in the loss."""
        return int(self.keep_N.sum())

    def unpack(self, values_N: Tensor) -> Tensor:
        """Packed values as `[B, L]`, 0 where a row has no token."""
        values_BL = values_N.new_zeros(max(1, len(self.rows)), max(1, self.longest))
        return values_BL.index_put((self.row_N, self.column_N), values_N)

    def pack(self, values_BL: Tensor) -> Tensor:
        """The inverse of `unpack`."""
        return values_BL[self.row_N, self.column_N]


def collate(
    rows: Sequence[Row],
    pad_id: int,
    device: torch.device,
    *,
    with_teacher: bool,
    packed: bool = False,
) -> MicroBatch:
    """Tensors of the rows that have tokens; if none has, of one row whose tokens are all left out.
    `packed`: sequences without padding, see `sides.py`.

    A rank or micro-batch without tokens still has to run forward and backward, or the others wait
    for it forever.
    """
    used = [row for row in rows if row.has_tokens] or list(rows[:1])
    lengths = [len(row.response_ids) for row in used]
    responses = [row.response_ids for row in used]

    def side(prompts: list[list[int]], answers: list[list[int]] = responses) -> Side:
        return make_side(prompts, answers, pad_id, device, packed=packed)

    student = side([row.prompt_ids for row in used])
    teacher = None
    if with_teacher:
        # A row without a teacher prompt is only ever here to keep the graph alive; its own prompt
        # does for that.
        teacher = side([row.teacher_prompt_ids or row.prompt_ids for row in used])
        check_same_responses(student, teacher)

    def tensor(values: list[Any], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype, device=device)

    def repeated(values: list[float]) -> Tensor:
        return tensor(
            [v for v, n in zip(values, lengths, strict=True) for _ in range(n)], torch.float32
        )

    def recorded(name: str) -> Tensor | None:
        values = [getattr(row, name) for row in used]
        if all(value is None for value in values):
            return None
        return torch.cat(values).to(device)

    return MicroBatch(
        rows=used,
        student=student,
        teacher=teacher,
        target_N=tensor([token for row in used for token in row.response_ids], torch.int64),
        keep_N=tensor([keep for row in used for keep in row.counts], torch.bool),
        row_N=tensor([b for b, n in enumerate(lengths) for _ in range(n)], torch.int64),
        column_N=tensor([column for n in lengths for column in range(n)], torch.int64),
        weight_N=tensor([weight for row in used for weight in row.weights], torch.float32),
        advantage_N=repeated([row.advantage for row in used]),
        success_N=repeated([float(bool(row.rollout.success)) for row in used]),
        longest=max(lengths),
        old_logp_N=recorded("old_logp"),
        entropy_N=recorded("entropy"),
        sampler_logp_N=recorded("sampler_logp"),
        signal_N=repeated([float(row.teacher_prompt_ids is not None) for row in used]),
        negatives=_negative_sides(used, side, device) if with_teacher else [],
    )


def _negative_sides(
    rows: list[Row], make: Callable[[list[list[int]], list[list[int]]], Side], device: torch.device
) -> list[NegativeSide]:
    """The first contrasting prompt of every row that has one, then the second, and so on."""
    lengths = [len(row.response_ids) for row in rows]
    starts = [sum(lengths[:b]) for b in range(len(rows))]
    sides = []
    for k in range(max((len(row.negative_prompt_ids) for row in rows), default=0)):
        having = [b for b, row in enumerate(rows) if len(row.negative_prompt_ids) > k]
        side = make(
            [rows[b].negative_prompt_ids[k] for b in having],
            [rows[b].response_ids for b in having],
        )
        places = [starts[b] + column for b in having for column in range(lengths[b])]
        sides.append(NegativeSide(side, torch.tensor(places, device=device)))
    return sides


def mask_rows(
    rows: Sequence[Row], *, need_teacher: bool, skip_truncated: bool, skip_first: int
) -> Tensor:
    """Which response tokens count, bool `[B, L]`: none of a row without signal, none before the
    error of a row that has one, and none that a setting leaves out.
    """
    longest = max((len(row.response_ids) for row in rows), default=0)
    mask_BL = torch.zeros(len(rows), max(1, longest), dtype=torch.bool)
    for b, row in enumerate(rows):
        silent = (need_teacher and row.teacher_prompt_ids is None) or (
            skip_truncated and row.rollout.truncated
        )
        if not silent:
            mask_BL[b, max(skip_first, row.error_start) : len(row.response_ids)] = True
    return mask_BL


def set_weights(rows: Sequence[Row], mask_BL: Tensor, weight_BL: Tensor) -> None:
    """Store mask and weights in the rows, cut to their lengths."""
    for row, mask, weight in zip(rows, mask_BL.tolist(), weight_BL.tolist(), strict=True):
        length = len(row.response_ids)
        row.counts, row.weights = mask[:length], weight[:length]
