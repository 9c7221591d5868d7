"""`patch`: the loss of `model(input_ids, labels=labels)` without logits.

Shape letters: B sequences, L positions, D hidden.
"""

from __future__ import annotations

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdkernels.engine import token_loss
from sdkernels.integrations.deferred import DeferredLogits, backbone_of, head_as_computed, innermost
from sdkernels.integrations.undo import Undo
from sdkernels.train.kv_cache import cache_name


def patch(model: Any, *, logits_in_eval: bool = True) -> Undo:
    """Make a causal language model compute its own loss by the engine.

    With `labels` in training mode the loss is the model's, up to rounding, and
    `outputs.logits` are deferred: they can be cut and give log-probs (`outputs.logits.logp(ids)`),
    and say so where someone wants the numbers. Without labels, and so in generation, the forward is
    the original one. The mean over no label is 0 here; transformers gives NaN.

    Args:
        model: a transformers causal language model; PEFT and DDP wrappers are looked through. Patch
            before wrapping with accelerate, as `Trainer` does it.
        logits_in_eval: in evaluation mode labels go to the original forward, since evaluation code
            reads logits. False: no logits there either.

    Returns:
        An `Undo`.

    Raises:
        TypeError: patched before, no backbone, or a head with an adapter or of a quantised layer.
        ValueError: a loss of its own, a mixture of experts with its balancing loss, or logits that
            `LMHead.from_model` can't express.
    """
    inner = innermost(model)
    name = type(inner).__name__
    if hasattr(inner.forward, "_sdkernels_undo"):
        raise TypeError(f"patch was called on this {name} before; undo that first")
    check_model(inner)
    held = vars(inner).get("forward")
    names = list(inspect.signature(type(inner).forward).parameters)[1:]

    # The signature stays: generate and Trainer read arguments off it.
    @functools.wraps(type(inner).forward)
    def forward(self: Any, *args: Any, labels: Any = None, **kwargs: Any) -> Any:
        original = _forward_of(self, inner, held)
        if "labels" in names[: len(args)]:
            kwargs |= dict(zip(names, args, strict=False))
            args, labels = (), kwargs.pop("labels")
        if labels is None:
            return original(*args, **kwargs)
        if not undo.active or (logits_in_eval and not self.training):
            return original(*args, labels=labels, **kwargs)
        return _forward_with_loss(self, labels, args, kwargs)

    def restore() -> None:
        # Whoever wrapped this forward since calls into it; it then is the original one.
        if getattr(inner.forward, "_sdkernels_undo", None) is undo:
            if held is None:
                del inner.forward
            else:
                inner.forward = held

    undo = Undo(f"patch({name})", restore)
    forward._sdkernels_undo = undo  # type: ignore[attr-defined]
    # A bound method, like the one it replaces: copies of the model rebind it to themselves.
    inner.forward = types.MethodType(forward, inner)
    return undo


def check_model(inner: Any) -> None:
    """Raise unless the loss of this model is the mean of its labels' negative log-probs, and its
    head one that the engine applies.
    """
    from transformers.loss.loss_utils import ForCausalLMLoss

    backbone_of(inner)
    head_as_computed(inner, "cpu")
    forward = inspect.unwrap(type(inner).forward)
    if "loss_function" not in forward.__code__.co_names:
        # Bart and its kin: their decoders alone compare logits and labels without a shift.
        raise ValueError(
            f"{type(inner).__name__}.forward does not call the model's loss_function, so what its "
            "loss is can't be told; leave the loss to the model, or write it with sd.token_loss"
        )
    own = inner.loss_function
    if own is not ForCausalLMLoss:
        raise ValueError(
            f"model.loss_function is {getattr(own, '__name__', own)}, "
            "not the causal language modelling loss that is computed here"
        )
    if getattr(inner.config.get_text_config(), "output_router_logits", False):
        raise ValueError(
            "config.output_router_logits=True adds a balancing loss of the experts, which is not "
            "computed here; set it to False, or leave the loss to the model"
        )


def _forward_of(model: Any, patched: Any, held: Callable[..., Any] | None) -> Callable[..., Any]:
    """The forward before the patch, of `model`: the patched one or a copy of it, which has its own
    weights. `held` is what stood on the instance, None: its class's forward.
    """
    if held is None:
        return types.MethodType(type(model).forward, model)
    if getattr(held, "__self__", None) is patched:
        return types.MethodType(held.__func__, model)  # type: ignore[attr-defined]
    return held


def _forward_with_loss(
    model: Any, labels: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    from transformers.modeling_outputs import CausalLMOutputWithPast

    kwargs = dict(kwargs)
    shift_labels = kwargs.pop("shift_labels", None)
    count = kwargs.pop("num_items_in_batch", None)
    ignore_index = kwargs.pop("ignore_index", -100)
    wants_dict = kwargs.pop("return_dict", None)
    as_tuple = not (model.config.return_dict if wants_dict is None else wants_dict)
    if kwargs.pop("output_router_logits", False) or not _is_zero(kwargs.pop("logits_to_keep", 0)):
        raise ValueError(
            "output_router_logits and logits_to_keep can't be combined with labels on a patched "
            "model; leave them out, or undo the patch"
        )
    outputs = backbone_of(model)(*args, return_dict=True, **kwargs)
    hidden_BLD = outputs.last_hidden_state
    head = head_as_computed(model, hidden_BLD.device.type)
    logits = DeferredLogits(hidden_BLD.to(head.weight.dtype), head)
    if shift_labels is None:
        shift_labels = torch.nn.functional.pad(labels, (0, 1), value=ignore_index)[..., 1:]
    targets_BL = shift_labels.to(hidden_BLD.device)
    mask_BL = targets_BL != ignore_index
    total, _ = token_loss(
        logits.hidden, head, lambda s, tok: -s.logp, targets=targets_BL, mask=mask_BL
    )
    count = mask_BL.sum() if count is None else torch.as_tensor(count, device=total.device)
    loss = total / count.clamp(min=1)
    name = cache_name()
    found = CausalLMOutputWithPast(
        loss=loss,
        logits=logits,
        **{name: getattr(outputs, name, None)},
        hidden_states=getattr(outputs, "hidden_states", None),
        attentions=getattr(outputs, "attentions", None),
    )
    return found.to_tuple() if as_tuple else found


def _is_zero(keep: int | Tensor) -> bool:
    return isinstance(keep, int) and keep == 0
