"""Forward passes without logits, and running them where wrappers expect it.

DDP, FSDP2 and DeepSpeed act in hooks of the wrapped module's forward. A loss that reads the trunk
and the head by attribute has to run inside that forward, or gradients are not reduced and shards
not gathered (huggingface/trl issues 4544, 6064, 7065).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from sdkernels.engine import LMHead
from sdkernels.engine.heads import in_autocast_dtype
from sdkernels.train.sides import Side

Result = TypeVar("Result")


def run_inside_forward(wrapped: Any, inner: Any, function: Callable[[], Result]) -> Result:
    """Call `function` as the forward of `inner`, through `wrapped` and all its hooks.

    Args:
        wrapped: the model as the trainer holds it (DDP, FSDP2, compiled, or `inner` itself).
        inner: the module whose forward the wrapper ends up calling.
    """
    own_forward = inner.__dict__.get("forward")
    result: list[Result] = []

    def forward(*_: Any, **__: Any) -> Any:
        # The wrapped forward must see the loss tensor, to register its hooks on it.
        result.append(function())
        value: Any = result[0]
        return value[0] if isinstance(value, tuple) else value

    inner.forward = forward
    try:
        loss = wrapped()
    finally:
        if own_forward is None:
            del inner.forward
        else:
            inner.forward = own_forward
    returned: Any = result[0]
    replaced: Any = (loss, *returned[1:]) if isinstance(returned, tuple) else loss
    return replaced


def trunk_of(model: Any) -> Any:
    """The decoder of a causal language model, without its head; adapters stay active inside it."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    trunk = inner.get_decoder() if hasattr(inner, "get_decoder") else None
    if trunk is None or trunk is inner:
        raise TypeError(
            f"{type(inner).__name__} has no get_decoder() that gives its trunk, so its hidden "
            "states cannot be had without "
            "logits; use a transformers causal language model"
        )
    return trunk


def hidden_and_head(
    model: Any, side: Side, *, valid_vocab: int | None = None
) -> tuple[Tensor, LMHead]:
    """`hidden_states` and the model's head, where autocast is on both in the dtype in which it
    would multiply them.
    """
    hidden_ND = hidden_states(model, side)
    # Behind the trunk, whose forward is what gathers a sharded weight.
    head = LMHead.from_model(model, valid_vocab=valid_vocab)
    kind = hidden_ND.device.type
    if torch.is_autocast_enabled(kind):
        head = in_autocast_dtype(head, kind)
        hidden_ND = hidden_ND.to(head.weight.dtype)
    return hidden_ND, head


def hidden_states(model: Any, side: Side) -> Tensor:
    """Final hidden states that predict the response tokens, `[N, D]`. No logits are made."""
    output = trunk_of(model)(
        input_ids=side.input_ids,
        attention_mask=side.attention_mask,
        position_ids=side.position_ids,
        use_cache=False,
    )
    hidden_BSD = output.last_hidden_state
    return hidden_BSD.reshape(-1, hidden_BSD.shape[-1]).index_select(0, side.index_N)
