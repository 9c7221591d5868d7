"""What the engine asks of a row backend, and what a backend gives back.

A backend works on the logits of one chunk of tokens. `forward` reads the slabs and returns
per-token statistics; `backward` writes the gradient with respect to the student's raw logits (the
output of the matrix product, before bias, scale, softcap and temperature) over the student's slab.
Everything between the two is the backend's business.

Shape letters: C tokens of the chunk, V vocabulary, K chosen or top-k ids per token.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from sdkernels.rows.shard import VocabShard


@dataclass(frozen=True)
class Side:
    """Raw logits of one model for one chunk, and the transforms that turn them into the logits of
    the loss.

    The order of the transforms is bias, scale, softcap, temperature: `softcap * tanh((raw + bias) *
    scale / softcap) / temperature`. `owned` slabs may be overwritten by the backend; a user's
    tensor may not. `padded`: each row's memory goes on to
    the next multiple of 16 columns and is the backend's too.
    """

    raw_CV: Tensor
    bias_V: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    temperature: float = 1.0
    owned: bool = True
    padded: bool = False


def slab_columns(vocab: int) -> int:
    """Columns to allocate for `vocab` logits, so that every row begins and ends with a whole
    vector: kernels move single elements otherwise.
    """
    return -(-vocab // 16) * 16


@dataclass(frozen=True)
class RowSpec:
    """Statistics asked for beyond the one-pass ones, and the dtype they are computed in.

    `gradient_dtype` is the dtype that `backward` should write, where the backend can choose; None
    is that of the slab. `shard` says which slice of the vocabulary the logits are of, None: all of
    it. Ids are those of the whole vocabulary.
    """

    compute_dtype: torch.dtype
    jsd_beta: float | None = None
    entry_clip: float | None = None
    topk: int | None = None
    topk_of: str = "student"
    gradient_dtype: torch.dtype | None = None
    shard: VocabShard | None = None


@dataclass(frozen=True)
class RowGate:
    """An entropy gate for the tokens of a chunk, which turns entropies into `direction`.

    Attributes:
        direction: `direction(entropy, tau, sigma)`.
        tau_C, sigma_C: thresholds and scales in nats, or None where the gate has none.
        rule: "sign" (+1 where H <= tau, else -1) or "tanh" (tanh((tau - H) / sigma)), both 0 where
            sigma is 0: `direction` is that formula, and a kernel may compute it. None: only
            `direction` knows.
    """

    direction: Callable[[Tensor, Tensor | None, Tensor | None], Tensor]
    tau_C: Tensor | None
    sigma_C: Tensor | None
    rule: str | None = None


class RowState(Protocol):
    """Opaque to the engine: what a backend keeps between `forward` and `backward` of one chunk."""


class FusedBackend(Protocol):
    """Statistics of one model without its logits in memory, and without a gradient."""

    def refusal(self, hidden_TD: Tensor, weight_VD: Tensor, ids: int) -> str | None:
        """Why `forward` cannot take these and `ids` chosen ids a token; None: it can."""
        ...

    def token_bytes(self, weight_VD: Tensor, spec: RowSpec) -> int:
        """Temporary memory of `forward` per token, in bytes."""
        ...

    def forward(
        self,
        hidden_CD: Tensor,
        weight_VD: Tensor,
        transforms: Side,
        chosen_CK: Tensor | None,
        spec: RowSpec,
        gate: RowGate | None = None,
    ) -> dict[str, Tensor]:
        """Statistics of one model from its hidden states, with no logits in memory; `transforms`
        is a side without rows.
        """
        ...


class RowBackend(Protocol):
    """The two passes over the logits of a chunk. `fused`: statistics without logits in memory."""

    name: str

    @property
    def fused(self) -> FusedBackend | None:
        """None: this backend has no such thing."""

    def forward(
        self,
        student: Side,
        teacher: Side | None,
        chosen_CK: Tensor | None,
        support_CK: Tensor | None,
        spec: RowSpec,
        gate: RowGate | None = None,
    ) -> tuple[dict[str, Tensor], Any]:
        """Per-token statistics (keys: fields of `TokenStats`) and the state that `backward` needs.

        `chosen_CK` are the ids whose log-probs are asked for (`logp`, `[C, K]`); `support_CK` is a
        given top-k support (of a served teacher), None when `spec.topk` says to find it. With a
        `gate` there is `direction` too.
        """
        ...

    def backward(self, state: Any, coefs: dict[str, Tensor]) -> Tensor:
        """Sum over statistics of coefficient times gradient with respect to the raw student logits,
        `[C, V]`.

        `coefs[name]` has the shape of the statistic. The result may share memory with the student's
        slab.
        """
        ...

    def rescale(self, total: Tensor, ratio: Tensor) -> None:
        """total *= ratio for a contiguous float32 `total` and one number on its device, which is
        mostly 1.
        """
        ...

    def scratch_bytes(self, tokens: int, vocab: int, spec: RowSpec) -> int:
        """Temporary memory of both passes over a chunk of `tokens` tokens, in bytes; grows with
        `tokens`, to a limit.
        """
        ...
