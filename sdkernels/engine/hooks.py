"""Code around the call of an output projection: the engine reads its weight and never calls it, so
whatever runs there is passed over. Hooks mostly look on, and get a warning; what is known to make
other logits is refused.
"""

from __future__ import annotations

import inspect
import warnings
from functools import partial
from typing import Any

from torch import nn

# They gather and free shards, move tensors between devices, cast them (TRL's cast_lm_head_to_fp32),
# or switch off the offloading of activations: what is computed stays the same.
HARMLESS = ("torch.distributed", "deepspeed", "accelerate", "trl")

# They make the weight anew before each call: pruning, weight normalisation.
MAKES_WEIGHTS = ("torch.nn.utils",)

KINDS = {
    "_forward_pre_hooks": "a forward pre-hook",
    "_forward_hooks": "a forward hook",
    "_backward_pre_hooks": "a backward pre-hook",
    "_backward_hooks": "a backward hook",
}


def check_hooks(module: nn.Module) -> None:
    """Warn of hooks that will not run, refuse what is known to make other logits.

    Raises:
        TypeError: a hook that makes the weight, a hook of accelerate's kind that is not its own,
            or a `forward` of this module alone; the message names it.
        ValueError: weights that accelerate holds elsewhere until the call.
    """
    for attribute, kind in KINDS.items():
        for hook in getattr(module, attribute, {}).values():
            what = f"{kind} ({_name(hook)})"
            if _is_a(hook, MAKES_WEIGHTS):
                raise TypeError(_message(module, what))
            if not _comes_from(hook, HARMLESS):
                warnings.warn(
                    f"head: this {type(module).__name__} has {what}, which does not run: the "
                    "engine reads the weight and never calls the layer. What it changes is lost",
                    stacklevel=2,
                )
    _refuse_forward(module)


def _refuse_forward(module: nn.Module) -> None:
    """accelerate puts its hooks into a `forward` of the module's own."""
    forward = vars(module).get("forward")
    if hasattr(module, "_hf_hook"):
        forward = module._old_forward
        for hook in getattr(module._hf_hook, "hooks", [module._hf_hook]):
            if not _comes_from(type(hook), HARMLESS):
                raise TypeError(_message(module, f"an accelerate hook ({type(hook).__name__})"))
            if getattr(hook, "offload", False):
                raise ValueError(
                    f"head: accelerate offloads the weight of this {type(module).__name__} and "
                    "loads it when the layer is called, which the engine does not do; give the "
                    "output projection a device in device_map="
                )
    if forward is None or getattr(forward, "__func__", None) is type(module).forward:
        return
    if not _comes_from(forward, HARMLESS):
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


def _comes_from(hook: Any, packages: tuple[str, ...]) -> bool:
    origin = _origin(hook)
    module = getattr(origin, "__module__", None) or type(origin).__module__
    return any(module == name or module.startswith(f"{name}.") for name in packages)


def _is_a(hook: Any, packages: tuple[str, ...]) -> bool:
    """Whether it or a class that its own inherits from comes from there: a subclass of a pruning
    method is one too, wherever it is defined.
    """
    return any(_comes_from(each, packages) for each in (hook, *type(_origin(hook)).__mro__))


def _name(hook: Any) -> str:
    origin = _origin(hook)
    return getattr(origin, "__qualname__", type(origin).__name__)
