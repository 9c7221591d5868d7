"""Hooks on an output projection: a warning, or refused where other logits are known to come."""

import functools
import warnings
from typing import Any

import pytest
import torch
import torch.nn.utils.prune as pruning
from torch import nn

import sdkernels as sd
from sdkernels.engine.hooks import check_hooks


def tripled(module: nn.Module, args: Any, output: Any) -> Any:
    return output * 3


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(4, 6)


def of_torch(name: str, hook: Any) -> Any:
    """`hook`, as if a module of torch or another library had defined it."""
    made = functools.wraps(hook)(lambda *args: hook(*args))
    made.__module__ = name
    del made.__wrapped__
    return made


@pytest.mark.parametrize(
    ("register", "message"),
    [
        ("register_forward_hook", r"Linear has a forward hook \(tripled\)"),
        ("register_forward_pre_hook", r"Linear has a forward pre-hook \(tripled\)"),
        ("register_full_backward_hook", r"Linear has a backward hook \(tripled\)"),
        ("register_full_backward_pre_hook", r"Linear has a backward pre-hook \(tripled\)"),
    ],
)
def test_hooks_are_warned_of_by_name(register: str, message: str) -> None:
    layer = linear()
    handle = getattr(layer, register)(functools.partial(tripled))
    with pytest.warns(UserWarning, match=message + ", which does not run: .*it changes is lost"):
        sd.token_stats(torch.randn(2, 4), layer)
    handle.remove()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        sd.token_stats(torch.randn(2, 4), layer)


def test_a_pruned_layer_is_refused() -> None:
    """Pruning computes `weight` before each call: what the engine would read is an old one."""
    layer = linear()
    pruning.l1_unstructured(layer, "weight", 0.5)
    with pytest.raises(TypeError, match=r"forward pre-hook .L1Unstructured."):
        check_hooks(layer)


def test_a_pruning_method_of_the_users_own_is_refused() -> None:
    class Mine(pruning.BasePruningMethod):
        PRUNING_TYPE = "unstructured"

        def compute_mask(self, t: torch.Tensor, default_mask: torch.Tensor) -> torch.Tensor:
            return default_mask * (t > 0)

    layer = linear()
    Mine.apply(layer, "weight")
    with pytest.raises(TypeError, match=r"forward pre-hook .*Mine."):
        check_hooks(layer)


@pytest.mark.parametrize(
    "module",
    [
        "torch.distributed.fsdp._fully_shard._fsdp_state",
        "deepspeed.runtime.zero.parameter_offload",
        "trl.models.activation_offloading",
    ],
)
def test_hooks_that_only_move_tensors_are_let_through(module: str) -> None:
    layer = linear()
    layer.register_forward_hook(of_torch(module, tripled))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_hooks(layer)
    layer.register_forward_hook(of_torch("torch.distributed_look_alike", tripled))
    with pytest.warns(UserWarning, match="tripled"):
        check_hooks(layer)


def test_a_forward_of_the_layers_own_is_refused() -> None:
    layer = linear()
    layer.forward = layer.forward
    check_hooks(layer)
    layer.forward = lambda x: 3 * nn.Linear.forward(layer, x)
    with pytest.raises(TypeError, match=r"Linear has a forward of its own .*lambda"):
        check_hooks(layer)
    layer.forward = of_torch("trl.trainer.grpo_trainer", layer.forward)
    check_hooks(layer)


def test_accelerate_may_move_and_cast_but_not_offload() -> None:
    hooks = pytest.importorskip("accelerate.hooks")

    class Tripling(hooks.ModelHook):
        def post_forward(self, module: nn.Module, output: Any) -> Any:
            return output * 3

    layer = linear()
    hooks.add_hook_to_module(layer, hooks.AlignDevicesHook("cpu", io_same_device=True))
    check_hooks(layer)
    hooks.add_hook_to_module(layer, Tripling(), append=True)
    with pytest.raises(TypeError, match=r"an accelerate hook .Tripling."):
        check_hooks(layer)
    hooks.remove_hook_from_module(layer)
    check_hooks(layer)
    hooks.add_hook_to_module(layer, hooks.AlignDevicesHook("cpu", offload=True))
    assert layer.weight.is_meta
    with pytest.raises(ValueError, match=r"accelerate offloads the weight of this Linear"):
        check_hooks(layer)


def test_a_forward_under_an_accelerate_hook_is_seen() -> None:
    hooks = pytest.importorskip("accelerate.hooks")
    layer = linear()
    layer.forward = lambda x: 3 * nn.Linear.forward(layer, x)
    hooks.add_hook_to_module(layer, hooks.AlignDevicesHook("cpu"))
    with pytest.raises(TypeError, match="a forward of its own"):
        check_hooks(layer)
