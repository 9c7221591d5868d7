"""Logits that a model would have returned, held as hidden states and a head.

Inside `deferring(model)` a causal language model called through whatever wraps it (PEFT, DDP,
mixed precision) runs its backbone only, and its output's `logits` are `DeferredLogits`. These can
be cut along batch and positions and divided by a temperature, as trainers do before a loss; the
loss then hands them to the engine.

Shape letters: B sequences, L positions, D hidden, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from sdkernels.engine import LMHead
from sdkernels.engine.heads import in_autocast_dtype
from sdkernels.integrations.undo import swapped
from sdkernels.ops import linear_logprob

Autocast = Callable[[], AbstractContextManager[Any]]


class DeferredLogits:
    """`[B, L, V]` logits that are never made.

    Attributes:
        hidden: `[B, L, D]` last hidden states.
        head: what turns them into logits.
        temperature: what the logits have been divided by.
    """

    def __init__(self, hidden: Tensor, head: LMHead, temperature: float = 1.0) -> None:
        self.hidden = hidden
        self.head = head
        self.temperature = temperature

    @property
    def shape(self) -> torch.Size:
        """Shape that the logits would have."""
        return torch.Size((*self.hidden.shape[:-1], self.head.vocab))

    @property
    def device(self) -> torch.device:
        """Where the hidden states are."""
        return self.hidden.device

    def __getitem__(self, index: Any) -> DeferredLogits:
        parts = index if isinstance(index, tuple) else (index,)
        whole = len(parts) < self.hidden.dim() or parts[-1] == slice(None)
        if not whole or not all(isinstance(part, slice) for part in parts):
            raise TypeError(
                f"deferred logits can be cut along batch and positions with slices, got [{index}]; "
                "there is no vocabulary axis to index"
            )
        return DeferredLogits(self.hidden[parts], self.head, self.temperature)

    def __truediv__(self, temperature: float) -> DeferredLogits:
        return DeferredLogits(self.hidden, self.head, self.temperature * float(temperature))

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AttributeError(_not_made(f".{name}"))

    @classmethod
    def __torch_function__(
        cls, function: Any, kinds: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        raise TypeError(_not_made(f"{function.__name__}()"))

    def logp(self, ids: Tensor, mask: Tensor | None = None) -> Tensor:
        """Log-probs of `ids` `[B, L]` in nats, differentiable; 0 where `mask` is False."""
        found = linear_logprob(self.hidden, self.head, ids, mask=mask, temperature=self.temperature)
        assert isinstance(found, Tensor)
        return found


def _not_made(what: str) -> str:
    return (
        f"{what}: these logits were not made, the loss was computed without them. Take log-probs "
        "by .logp(ids); or call the model without labels, or undo the patch"
    )


def backbone_of(model: Any) -> nn.Module:
    """The model below its head, multimodal parts included.

    Raises:
        TypeError: the class does not say which part that is.
    """
    backbone = getattr(model, "base_model", None)
    if not isinstance(backbone, nn.Module) or backbone is model:
        raise TypeError(
            f"{type(model).__name__} has no base_model below its head, so its hidden states can't "
            "be had without logits; use a transformers causal language model"
        )
    return backbone


def innermost(model: Any) -> Any:
    """The transformers model inside DDP, torch.compile, PEFT and their like."""
    while isinstance(getattr(model, "module", None), nn.Module):
        model = model.module
    return model.get_base_model() if hasattr(model, "get_base_model") else model


@contextmanager
def deferring(model: Any, autocast: Autocast = nullcontext) -> Iterator[None]:
    """Calls of `model` return `DeferredLogits` inside this block, and cost no product with its
    head.

    Args:
        model: a transformers causal language model, wrapped or not.
        autocast: makes the context in which the backbone runs; accelerate wraps mixed precision
            around the very forward that is replaced here. The product with the head is then taken
            in that dtype too, as the model itself would.
    """
    inner = innermost(model)
    with swapped(inner, "forward", _backbone_forward(inner, autocast)):
        yield


def _backbone_forward(inner: Any, autocast: Autocast) -> Callable[..., Any]:
    backbone = backbone_of(inner)

    def forward(
        *args: Any, labels: Any = None, logits_to_keep: int | Tensor = 0, **kwargs: Any
    ) -> Any:
        from transformers.modeling_outputs import CausalLMOutputWithPast

        if labels is not None:
            raise TypeError("labels were passed while logits are deferred: nobody computes a loss")
        given = {"use_cache": False} | {k: v for k, v in kwargs.items() if v is not None}
        with autocast():
            hidden_BLD = backbone(*args, **given).last_hidden_state
            head = head_as_computed(inner, hidden_BLD.device.type)
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        hidden_BLD = hidden_BLD[:, keep].to(head.weight.dtype)
        return CausalLMOutputWithPast(logits=DeferredLogits(hidden_BLD, head))

    return forward


def head_as_computed(inner: Any, device_type: str) -> LMHead:
    """The model's head, in the dtype in which autocast would take its product."""
    return in_autocast_dtype(LMHead.from_model(inner), device_type)
