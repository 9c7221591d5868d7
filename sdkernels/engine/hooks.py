"""Code around the call of an output projection: the engine reads its weight and never calls it, so
whatever runs there would be passed over, and another objective trained without a sign of it.
"""

from __future__ import annotations

import inspect
from functools import partial
from typing import Any

from torch import nn

# They gather and free shards, move tensors between devices, cast them (TRL's cast_lm_head_to_fp32),
# or switch off the offloading of activations: what is computed stays the same.
HARMLESS = ("torch.distributed", "deepspeed", "accelerate", "trl")

KINDS = {
    "_forward_pre_hooks": "a forward pre-hook",
    "_forward_hooks": "a forward hook",
    "_backward_pre_hooks": "a backward pre-hook",
    "_backward_hooks": "a backward hook",
}


def refuse_hooks(module: nn.Module) -> None:
    """Raise if something that is not known to be harmless runs where the module is called.

    Raises:
        TypeError: a hook, or a `forward` of this module alone; the message names it.
        ValueError: weights that accelerate holds elsewhere until the call.
    """
    for attribute, kind in KINDS.items():
        for hook in getattr(module, attribute, {}).values():
            if not _is_harmless(hook):
                raise TypeError(_message(module, f"{kind} ({_name(hook)})"))
    _refuse_forward(module)


def _refuse_forward(module: nn.Module) -> None:
    """accelerate puts its hooks into a `forward` of the module's own."""
    forward = vars(module).get("forward")
    if hasattr(module, "_hf_hook"):
        forward = module._old_forward
        for hook in getattr(module._hf_hook, "hooks", [module._hf_hook]):
            if not _is_harmless(type(hook)):
                raise TypeError(_message(module, f"an accelerate hook ({type(hook).__name__})"))
            if getattr(hook, "offload", False):
                raise ValueError(
                    f"head: accelerate offloads the weight of this {type(module).__name__} and "
                    "loads it when the layer is called, which the engine does not do; give the "
                    "output projection a device in device_map="
                )
    if forward is None or getattr(forward, "__func__", None) is type(module).forward:
        return
    if not _is_harmless(forward):
        raise TypeError(_message(module, f"a forward of its own ({_name(forward)})"))


def _message(module: nn.Module, what: str) -> str:
    return (
        f"head: this {type(module).__name__} has {what}, which the engine would pass over: it "
        "reads the weight and never calls the layer. Remove it; if it only looks on, pass "
        "LMHead(layer.weight, layer.bias) yourself"
    )


def _origin(hook: Any) -> Any:
    """The function that a bound method, a partial or a wrapper stands for."""
    while isinstance(hook, partial):
        hook = hook.func
    return inspect.unwrap(hook)


def _is_harmless(hook: Any) -> bool:
    module = getattr(_origin(hook), "__module__", None) or ""
    return any(module == name or module.startswith(f"{name}.") for name in HARMLESS)


def _name(hook: Any) -> str:
    origin = _origin(hook)
    return getattr(origin, "__qualname__", type(origin).__name__)
