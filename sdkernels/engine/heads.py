"""The output projection: a weight, and the transforms a model applies between it and the loss.

Shape letters: V vocabulary, D hidden.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

# Where model configs keep transforms of their logits. Multipliers: logits * value; divisors: logits
# / value.
_MULTIPLIERS = ("logit_scale", "lm_head_multiplier", "output_multiplier_scale")
_DIVISORS = ("logits_scaling",)
_SOFTCAPS = ("final_logit_softcapping", "logits_soft_cap", "final_logit_softcap")


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
        if not 0 < scale < math.inf:
            raise ValueError(f"scale={scale!r}: expected a finite number above 0")
        if softcap is not None and not 0 < softcap < math.inf:
            raise ValueError(
                f"softcap={softcap!r}: expected a finite number above 0, or None for no softcap"
            )
        check_valid_vocab(valid_vocab, vocab)
        self.weight = weight
        self.bias = bias
        self.scale = float(scale)
        self.softcap = None if softcap is None else float(softcap)
        self.valid_vocab = valid_vocab

    @property
    def vocab(self) -> int:
        """Number of vocabulary entries that take part."""
        return self.valid_vocab if self.valid_vocab is not None else self.weight.shape[0]

    @property
    def hidden_size(self) -> int:
        """Length D of a hidden state."""
        return self.weight.shape[1]

    @classmethod
    def from_model(cls, model: Any, *, valid_vocab: int | None = None) -> LMHead:
        """The head of a transformers causal language model, with the transforms named in its
        config.

        Reads `final_logit_softcapping` (Gemma), `logit_scale` (Cohere), `logits_scaling` (Granite)
        and relatives. The weight is the model's own parameter, so gradients reach it (and tied
        embeddings).

        Raises:
            TypeError: no output embedding, an adapter (LoRA) or a quantised layer on it, or a layer
                that is not linear.
            ValueError: the config asks for a transform of the logits that this class does not know.
        """
        inner = model.get_base_model() if hasattr(model, "get_base_model") else model
        get_head = getattr(inner, "get_output_embeddings", None)
        module = get_head() if callable(get_head) else None
        if module is None:
            raise TypeError(
                f"model: {type(inner).__name__} has no output embedding (get_output_embeddings() "
                "gives nothing); "
                "pass LMHead(weight, ...) yourself"
            )
        weight, bias = _linear_parts(module)
        config = (
            inner.config.get_text_config()
            if hasattr(inner.config, "get_text_config")
            else inner.config
        )
        scale, softcap = _transforms_of(config)
        return cls(weight, bias, scale=scale, softcap=softcap, valid_vocab=valid_vocab)

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
        return f"LMHead({', '.join(parts)})"


def as_head(head: Any, argument: str = "head") -> LMHead:
    """`head` itself, or an LMHead around a bare weight tensor or a plain `nn.Linear`."""
    if isinstance(head, LMHead):
        return head
    if isinstance(head, Tensor):
        return LMHead(head)
    if isinstance(head, nn.Module):
        return LMHead(*_linear_parts(head))
    raise TypeError(
        f"{argument}: expected an LMHead, a weight tensor [V, D] or an nn.Linear, got "
        f"{type(head).__name__}"
    )


def _linear_parts(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a plain linear layer; everything that would compute something else is
    refused.
    """
    kind = type(module).__name__
    if hasattr(module, "lora_A") or hasattr(module, "base_layer"):
        raise TypeError(
            f"head: {kind} carries an adapter (LoRA) on the output projection, which its weight "
            "alone does not show. "
            "Leave lm_head out of target_modules, or merge the adapter first "
            "(model.merge_and_unload())"
        )
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise TypeError(f"head: {kind} has no weight tensor; pass LMHead(weight, ...) yourself")
    # Subclasses of nn.Linear (quantised, parallel, scaled) may do more than a product with their
    # weight.
    if (
        type(module) is not nn.Linear
        and isinstance(module, nn.Linear)
        and kind != "NonDynamicallyQuantizableLinear"
    ):
        raise TypeError(
            f"head: {kind} is a modified nn.Linear and may compute more than hidden @ weight.T; "
            "pass LMHead(weight, ...) with a plain weight tensor"
        )
    if not isinstance(module, nn.Linear) and not isinstance(module, nn.Embedding):
        raise TypeError(
            f"head: expected a plain nn.Linear, got {kind}; pass LMHead(weight, ...) yourself"
        )
    bias = getattr(module, "bias", None)
    return weight, bias if isinstance(bias, Tensor) else None


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
            "is gathered"
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
    if not isinstance(valid_vocab, int) or not 1 <= valid_vocab <= vocab:
        raise ValueError(
            f"valid_vocab={valid_vocab!r}: expected a whole number from 1 to V = {vocab}, or None "
            "for all"
        )


def is_dtensor(tensor: Tensor) -> bool:
    """Whether this is a shard under FSDP2 or tensor parallelism."""
    return hasattr(tensor, "full_tensor") and hasattr(tensor, "device_mesh")


def _transforms_of(config: Any) -> tuple[float, float | None]:
    """(scale, softcap) from a model config; refuses names that look like a logit transform we do
    not know.
    """
    scale, softcap = 1.0, None
    known = {*_MULTIPLIERS, *_DIVISORS, *_SOFTCAPS}
    values = config.to_dict() if hasattr(config, "to_dict") else vars(config)
    for name, value in values.items():
        if not isinstance(value, (int, float)) or isinstance(value, bool):
            continue
        if name in _MULTIPLIERS:
            scale *= float(value)
        elif name in _DIVISORS:
            scale /= float(value)
        elif name in _SOFTCAPS:
            softcap = float(value)
        elif name not in known and _looks_like_logit_transform(name) and value not in (0, 1):
            raise ValueError(
                f"config.{name}={value!r} looks like a transform of the logits that LMHead does "
                "not know; "
                "if it is not one, pass LMHead(weight, bias, scale=..., softcap=...) yourself"
            )
    return scale, softcap


def _looks_like_logit_transform(name: str) -> bool:
    about_logits = "logit" in name or "lm_head" in name
    about_routers = "router" in name or "attn" in name or "attention" in name or "gate" in name
    return (
        about_logits
        and not about_routers
        and any(w in name for w in ("cap", "scal", "mult", "temp"))
    )
