"""The output projection: a weight, and the transforms a model applies between it and the loss.

Shape letters: V vocabulary, D hidden.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn

from sdkernels.engine.model_head import linear_parts, read_model
from sdkernels.engine.scalars import above_zero, is_whole_number
from sdkernels.engine.sharding import vocab_shard
from sdkernels.rows.shard import VocabShard


class LMHead:
    """An output projection as the engine sees it: logits = softcap(scale * (hidden @ weight.T +
    bias)).

    Args:
        weight: `[V, D]`, floating point. May require grad.
        bias: `[V]` or None. May require grad; -inf entries ban tokens.
        scale: factor of the logits (Cohere's `logit_scale`; 1 / Granite's `logits_scaling`).
        softcap: `c` of `c * tanh(logits / c)` (Gemma's `final_logit_softcapping`), or None.
        valid_vocab: number of leading vocabulary entries that are real; the padding behind them
            gets no probability and no gradient. None: all of them.
        group, vocab_offset: the weight (and bias) are rows `vocab_offset`, `vocab_offset` + 1, ...
            of a head whose other rows the other processes of `group` (`torch.distributed`) hold.
            Making one is collective: every process of the group does. `valid_vocab` then counts
            entries of the whole vocabulary. See "Vocabulary-parallel heads" in docs/engine.md.

    Raises:
        TypeError: the weight is a DTensor, a quantised tensor, an adapter-wrapped module, or no
            tensor at all.
        ValueError: wrong shape, an empty (ZeRO-3) shard, or settings out of range.
    """

    def __init__(
        self,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        scale: float = 1.0,
        softcap: float | None = None,
        valid_vocab: int | None = None,
        group: Any = None,
        vocab_offset: int | None = None,
    ) -> None:
        _check_weight(weight)
        vocab = weight.shape[0]
        if bias is not None:
            if not isinstance(bias, Tensor):
                raise TypeError(f"bias: expected a tensor [V] or None, got {type(bias).__name__}")
            if is_dtensor(bias):
                raise TypeError("bias is a DTensor: gather it first with bias.full_tensor()")
            if not bias.is_floating_point():
                raise TypeError(f"bias: expected a floating dtype, got {bias.dtype}")
            if bias.shape != (vocab,):
                raise ValueError(f"bias: expected shape [V] = [{vocab}], got {list(bias.shape)}")
            if bias.device != weight.device:
                raise ValueError(
                    f"bias is on {bias.device}, weight on {weight.device}: move one of them"
                )
        self.scale = above_zero("scale", scale)
        self.softcap = None
        if softcap is not None:
            self.softcap = above_zero("softcap", softcap, ", or None for no softcap")
        self.shard: VocabShard | None = None
        if group is None and vocab_offset is None:
            check_valid_vocab(valid_vocab, vocab)
        else:
            self.shard = vocab_shard(weight, bias, valid_vocab, group, vocab_offset)
        self.weight = weight
        self.bias = bias
        self.valid_vocab = valid_vocab

    @property
    def vocab(self) -> int:
        """Number of vocabulary entries that take part, of this process's where they are split."""
        if self.shard is not None:
            return min(self.weight.shape[0], self.shard.total - self.shard.first)
        return self.valid_vocab if self.valid_vocab is not None else self.weight.shape[0]

    @property
    def total_vocab(self) -> int:
        """Number of vocabulary entries that take part, on all processes together."""
        return self.vocab if self.shard is None else self.shard.total

    @property
    def hidden_size(self) -> int:
        """Length D of a hidden state."""
        return self.weight.shape[1]

    @classmethod
    def from_model(
        cls,
        model: Any,
        *,
        valid_vocab: int | None = None,
        group: Any = None,
        vocab_offset: int | None = None,
    ) -> LMHead:
        """The head of a transformers causal language model, for its last hidden states (behind the
        final norm).

        Reads the transforms that the config names: `final_logit_softcapping` (Gemma), `logit_scale`
        (Cohere), `logits_scaling` (Granite), `dim_model_base` (MiniCPM) and relatives, and
        `unpadded_vocab_size` where no `valid_vocab` is given. The weight is the model's own
        parameter, so gradients reach it (and tied embeddings). Under PEFT's `modules_to_save` it is
        that of the active adapter. `group` and `vocab_offset` are for a model whose output layer
        holds some rows of the head, as a plain tensor.

        Raises:
            TypeError: no output embedding, an adapter (LoRA) or a quantised layer on it, a layer
                that is not linear, or one with a hook or a `forward` of its own.
            ValueError: an encoder-decoder, a model that does more between its last hidden states
                and its logits, a config that asks for a transform which this class does not know,
                or a weight that accelerate offloads.
        """
        found = read_model(model)
        if valid_vocab is None:
            valid_vocab = found.valid_vocab
        return cls(
            found.weight,
            found.bias,
            scale=found.scale,
            softcap=found.softcap,
            valid_vocab=valid_vocab,
            group=group,
            vocab_offset=vocab_offset,
        )

    def __repr__(self) -> str:
        shape = "x".join(map(str, self.weight.shape))
        parts = [f"weight {shape} {str(self.weight.dtype).removeprefix('torch.')}"]
        if self.bias is not None:
            parts.append("bias")
        if self.scale != 1.0:
            parts.append(f"scale={self.scale:g}")
        if self.softcap is not None:
            parts.append(f"softcap={self.softcap:g}")
        if self.valid_vocab is not None:
            parts.append(f"valid_vocab={self.valid_vocab}")
        if self.shard is not None:
            parts.append(f"vocab_offset={self.shard.first} of {len(self.shard.sizes)} slices")
        return f"LMHead({', '.join(parts)})"


def as_head(head: Any, argument: str = "head") -> LMHead:
    """`head` itself, or an LMHead around a bare weight tensor or a plain `nn.Linear`."""
    if isinstance(head, LMHead):
        return head
    if isinstance(head, Tensor):
        return LMHead(head)
    if isinstance(head, nn.Module):
        return LMHead(*linear_parts(head))
    raise TypeError(
        f"{argument}: expected an LMHead, a weight tensor [V, D] or an nn.Linear, got "
        f"{type(head).__name__}"
    )


def in_autocast_dtype(head: LMHead, device_type: str) -> LMHead:
    """`head` in the dtype in which autocast, where it is on, would take its product. Gradients
    reach the parameters that it has.
    """
    # Which leaves float64 alone.
    if not torch.is_autocast_enabled(device_type) or head.weight.dtype == torch.float64:
        return head
    dtype = torch.get_autocast_dtype(device_type)
    found = copy.copy(head)
    found.weight = head.weight.to(dtype)
    found.bias = None if head.bias is None else head.bias.to(dtype)
    return found


def _check_weight(weight: Any) -> None:
    if isinstance(weight, nn.Module):
        raise TypeError(
            f"weight: expected a tensor [V, D], got the module {type(weight).__name__}; use "
            "LMHead.from_model(model)"
        )
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight: expected a tensor [V, D], got {type(weight).__name__}")
    if is_dtensor(weight):
        raise TypeError(
            "weight is a DTensor (a shard under FSDP2 or tensor parallelism): gather it first with "
            "weight.full_tensor(), or compute the loss inside the root module's forward where it "
            "is gathered; rows of one head on several ranks: LMHead(weight.to_local(), "
            "group=mesh.get_group(), vocab_offset=...)"
        )
    if weight.numel() == 0:
        raise ValueError(
            f"weight is empty, shape {list(weight.shape)} (a ZeRO-3 shard?): gather it first, e.g. "
            "`with deepspeed.zero.GatheredParameters([weight], modifier_rank=None)`"
        )
    if weight.dim() != 2:
        raise ValueError(f"weight: expected shape [V, D], got {list(weight.shape)}")
    if "quant" in type(weight).__name__.lower():
        # Such tensors may claim the dtype that they would have when dequantised.
        raise TypeError(
            f"weight is a {type(weight).__name__}, a quantised head: dequantise it first"
        )
    if weight.dtype not in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        raise TypeError(
            f"weight has dtype {weight.dtype} (a quantised head?): accepted are float64, float32, "
            "bfloat16, float16; "
            "dequantise it first"
        )


def check_valid_vocab(valid_vocab: Any, vocab: int) -> None:
    """Raise unless `valid_vocab` is None or a number of entries that there are."""
    if valid_vocab is None:
        return
    if not is_whole_number(valid_vocab) or not 1 <= valid_vocab <= vocab:
        raise ValueError(
            f"valid_vocab={valid_vocab!r}: expected a whole number from 1 to V = {vocab}, or None "
            "for all"
        )


def is_dtensor(tensor: Tensor) -> bool:
    """Whether this is a shard under FSDP2 or tensor parallelism."""
    return hasattr(tensor, "full_tensor") and hasattr(tensor, "device_mesh")
