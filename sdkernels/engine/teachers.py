"""Where the teacher's distribution comes from: hidden states and a head, logits, or a top-k list
from a server.

No gradient ever reaches a teacher. Shape letters: T tokens (any leading shape), D hidden, V
vocabulary, K ids.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sdkernels.engine.heads import LMHead, as_head, check_valid_vocab


class HiddenTeacher:
    """Teacher given by its hidden states and its head; the logits exist one chunk at a time only.

    Args:
        hidden: `[..., D_t]`, the leading shape of the student's hidden states. D_t may differ from
            the student's.
        head: `LMHead` or weight `[V, D_t]`. The student's own (trainable) head is welcome; it is
            used as a constant.

    Raises:
        ValueError: `hidden` requires grad, or its last dimension is not the head's.
    """

    def __init__(self, hidden: Tensor, head: LMHead | Tensor) -> None:
        self.hidden = _constant(hidden, "teacher.hidden")
        self.head = as_head(head, "teacher.head")
        if hidden.dim() < 1 or hidden.shape[-1] != self.head.hidden_size:
            raise ValueError(
                f"teacher.hidden: expected [..., D] with D = {self.head.hidden_size} of its head, "
                f"got {list(hidden.shape)}"
            )

    @property
    def lead_shape(self) -> torch.Size:
        """Shape of the tokens."""
        return self.hidden.shape[:-1]


class LogitsTeacher:
    """Teacher given by logits that already exist, before temperature.

    Args:
        logits: `[..., V]`; -inf entries are banned tokens. They are read chunk by chunk and never
            modified.
        valid_vocab: number of leading entries that are real, None for all.

    Raises:
        ValueError: `logits` require grad, or `valid_vocab` is out of range.
    """

    def __init__(self, logits: Tensor, *, valid_vocab: int | None = None) -> None:
        self.logits = _constant(logits, "teacher.logits")
        if logits.dim() < 1 or logits.shape[-1] == 0:
            raise ValueError(f"teacher.logits: expected [..., V], got {list(logits.shape)}")
        check_valid_vocab(valid_vocab, logits.shape[-1])
        self.valid_vocab = valid_vocab

    @property
    def vocab(self) -> int:
        """Number of vocabulary entries that take part."""
        return self.valid_vocab if self.valid_vocab is not None else self.logits.shape[-1]

    @property
    def lead_shape(self) -> torch.Size:
        """Shape of the tokens."""
        return self.logits.shape[:-1]


class TopKTeacher:
    """Teacher of which only K log-probs per token are known, as inference servers return them.

    Divergences are taken over the K ids and, with `tail=True`, one bucket that holds the rest of
    both models' mass; with `tail=False` both sides are renormalised on the K ids (K = 1 then
    carries no signal).

    Args:
        ids: `[..., K]` integer vocabulary ids, no id twice in a row.
        logprobs: `[..., K]` true log-probs in nats (at most 0), same shape, at the temperature that
            the loss uses for the student: they can't be brought to another one.

    Raises:
        ValueError / TypeError: shapes, dtypes, positive log-probs, or tensors that require grad.
    """

    def __init__(self, ids: Tensor, logprobs: Tensor, *, tail: bool = True) -> None:
        if not isinstance(ids, Tensor) or ids.dtype not in (torch.int64, torch.int32):
            came = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
            raise TypeError(f"teacher.ids: expected int64 or int32 ids, got {came}")
        logprobs = _constant(logprobs, "teacher.logprobs")
        if ids.shape != logprobs.shape or ids.dim() < 1 or ids.shape[-1] == 0:
            raise ValueError(
                f"teacher: expected ids and logprobs of one shape [..., K], got {list(ids.shape)} "
                f"and {list(logprobs.shape)}"
            )
        if ids.device != logprobs.device:
            raise ValueError(
                f"teacher.logprobs is on {logprobs.device}, teacher.ids on {ids.device}: move one "
                "of them"
            )
        self.ids = ids.long()
        self.logprobs = logprobs
        self.tail = tail
        if ids.device.type == "cpu" and ids.numel():
            # A little above 0 is rounding of the server's softmax; more is not a log-prob.
            if not float(logprobs.max()) <= 1e-3:
                raise ValueError(
                    f"teacher.logprobs: expected log-probs <= 0, got {float(logprobs.max()):.4g}"
                )
            mass = float(logprobs.double().exp().sum(-1).max())
            if mass > 1.01:
                raise ValueError(
                    f"teacher.logprobs: the probabilities of one token add up to {mass:.4g}; "
                    "expected true log-probs, whose mass is at most 1"
                )
            ordered = self.ids.sort(-1).values
            if bool((ordered[..., 1:] == ordered[..., :-1]).any()):
                raise ValueError(
                    "teacher.ids: an id stands twice in one row; its mass would be counted twice"
                )

    @property
    def lead_shape(self) -> torch.Size:
        """Shape of the tokens."""
        return self.ids.shape[:-1]


Teacher = HiddenTeacher | LogitsTeacher | TopKTeacher


def _constant(tensor: Tensor, name: str) -> Tensor:
    if not isinstance(tensor, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
    if not tensor.is_floating_point():
        raise TypeError(f"{name}: expected a floating dtype, got {tensor.dtype}")
    if tensor.requires_grad:
        raise ValueError(
            f"{name} requires grad, but no gradient is sent into a teacher: compute it under "
            "torch.no_grad() "
            "or pass it .detach()-ed"
        )
    return tensor
