"""What one model reads of a micro-batch: sequences padded to one width, or packed into one row.

Packed sequences stand one behind the other and their positions start anew at 0, from which
transformers makes attention that does not look across (varlen kernels in flash attention, a
block-diagonal mask in sdpa, eager and flex). Nothing is computed for padding.

Shape letters: B rows, S sequence positions, N response tokens of all rows.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

LEAK_TOLERANCE = 1e-2


@dataclass
class Side:
    """Ids `[B, S]`, and where the predictions stand, flat `[N]` in B * S.

    Attributes:
        attention_mask: `[B, S]`, 1 at tokens, on either side of the padding; None where sequences
            are packed, `[1, S]`.
        starts: first position of each packed sequence; None where they are padded.
        padded_size: positions that the same sequences take when they are padded.
        num_tokens: positions that are not padding.
    """

    input_ids: Tensor
    attention_mask: Tensor | None
    index_N: Tensor
    padded_size: int
    num_tokens: int
    starts: Tensor | None = None

    @property
    def position_ids(self) -> Tensor:
        """Positions `[B, S]`, from 0 at the first token of each sequence."""
        if self.attention_mask is not None:
            return (self.attention_mask.cumsum(dim=1) - 1).clamp(min=0)
        assert self.starts is not None
        flat = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        sequence = torch.searchsorted(self.starts, flat, right=True) - 1
        return (flat - self.starts[sequence]).unsqueeze(0)


def make_side(
    prompts: Sequence[list[int]],
    responses: Sequence[list[int]],
    pad_id: int,
    device: torch.device,
    *,
    packed: bool,
) -> Side:
    """The sequences of prompt and response, packed or padded on the right."""
    pairs = list(zip(prompts, responses, strict=True))
    sequences = [prompt + response for prompt, response in pairs]
    width = max(map(len, sequences))
    lengths = [len(sequence) for sequence in sequences]
    if packed:
        starts = [0, *itertools.accumulate(lengths[:-1])]
        input_ids = torch.tensor([[token for sequence in sequences for token in sequence]])
        mask = None
    else:
        starts = [b * width for b in range(len(sequences))]
        rows = [sequence + [pad_id] * (width - len(sequence)) for sequence in sequences]
        input_ids = torch.tensor(rows)
        mask = torch.arange(width) < torch.tensor(lengths).unsqueeze(1)
    # The state at position p predicts the token at p + 1.
    index = [
        position
        for start, (prompt, response) in zip(starts, pairs, strict=True)
        for position in range(start + len(prompt) - 1, start + len(prompt) + len(response) - 1)
    ]
    return Side(
        input_ids=input_ids.to(device),
        attention_mask=None if mask is None else mask.long().to(device),
        index_N=torch.tensor(index, dtype=torch.int64, device=device),
        padded_size=width * len(sequences),
        num_tokens=sum(lengths),
        starts=torch.tensor(starts, device=device) if packed else None,
    )


def padding_id(tokenizer: Any) -> int:
    """The id to pad with: padding is masked everywhere, so any where the tokenizer has none."""
    return 0 if tokenizer.pad_token_id is None else int(tokenizer.pad_token_id)


def check_same_responses(student: Side, teacher: Side) -> None:
    """Student and teacher must score the same ids; anything else would be plausible nonsense."""
    ours = student.input_ids.reshape(-1)[student.index_N + 1]
    theirs = teacher.input_ids.reshape(-1)[teacher.index_N + 1]
    if not torch.equal(ours, theirs):
        raise AssertionError("student and teacher sequences carry different response ids")


def packs_by_itself(model: Any) -> bool:
    """Whether the model's attention skips what belongs to other sequences at no cost."""
    return "flash" in str(getattr(model.config, "_attn_implementation", None))


@torch.no_grad()
def check_packing(model: Any) -> None:
    """Refuse to pack for a model whose sequences then see each other.

    Raises:
        ValueError: hidden states of a sequence depend on what is packed before it, as in models
            with recurrent layers, which know nothing of positions.
    """
    from sdkernels.train.forward import hidden_states

    device = next(model.parameters()).device
    last = [5, 6, 7, 8, 9, 10]
    first = [[11, 12, 13, 14, 15], [9, 8, 7, 6, 5]]
    sides = [
        make_side([before[:1], last[:1]], [before[1:], last[1:]], 0, device, packed=True)
        for before in first
    ]
    sides.append(make_side([last[:1]], [last[1:]], 0, device, packed=False))
    was_training = model.training
    model.eval()
    try:
        one, other, alone = (hidden_states(model, side)[-5:].float() for side in sides)
    finally:
        model.train(was_training)
    scale = alone.abs().max()
    gap = torch.maximum((one - other).abs().max(), (one - alone).abs().max())
    if not bool(gap <= LEAK_TOLERANCE * scale):
        raise ValueError(
            f"padding_free=True: {type(model).__name__} does not keep packed sequences apart "
            f"(hidden states change by {float(gap / scale):.1%} with what stands before them); set "
            "padding_free=false"
        )
