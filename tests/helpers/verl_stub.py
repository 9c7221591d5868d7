"""The part of verl 0.9 that `sdkernels.integrations.verl` touches, for machines without it.

Signatures and behaviour are those of verl/trainer/ppo/core_algos.py,
verl/trainer/distillation/losses.py and verl/workers/utils/padding.py;
`test_verl.py::test_the_stub_has_the_interface_of_verl` compares them where verl is installed.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import pytest
from torch import Tensor, nn


def install(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put modules named as verl's into `sys.modules`."""
    algorithms = _module("verl.trainer.ppo.core_algos", POLICY_LOSS_REGISTRY={})
    algorithms.register_policy_loss = _decorator(algorithms.POLICY_LOSS_REGISTRY)
    algorithms.agg_loss = agg_loss
    losses = _module("verl.trainer.distillation.losses", DISTILLATION_LOSS_REGISTRY={})
    losses.DistillationLossSettings = DistillationLossSettings

    def register_distillation_loss(settings: DistillationLossSettings) -> Any:
        (name,) = settings.names
        return _decorator(losses.DISTILLATION_LOSS_REGISTRY)(name)

    losses.register_distillation_loss = register_distillation_loss
    padding = _module("verl.workers.utils.padding", no_padding_2_padding=no_padding_2_padding)
    functional = _module(
        "verl.utils.experimental.torch_functional",
        FusedLinearForPPO=type("FusedLinearForPPO", (FusedLinearForPPO,), {}),
    )
    triton = _module("verl.utils.kernel.linear_cross_entropy", linear_cross_entropy=object())
    for module in (algorithms, losses, padding, functional, triton):
        parts = module.__name__.split(".")
        for i in range(1, len(parts)):
            name = ".".join(parts[:i])
            if name not in sys.modules or not hasattr(sys.modules[name], "__stub__"):
                monkeypatch.setitem(sys.modules, name, _module(name, __stub__=True, __path__=[]))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        monkeypatch.setattr(sys.modules[".".join(parts[:-1])], parts[-1], module, raising=False)


def _module(name: str, **content: Any) -> Any:
    module = ModuleType(name)
    vars(module).update(content)
    return module


def _decorator(registry: dict[str, Any]) -> Any:
    def register(name: str) -> Any:
        return lambda function: registry.setdefault(name, function)

    return register


@dataclass
class DistillationLossSettings:
    names: list[str]
    use_topk: bool = False
    use_estimator: bool = False


class FusedLinearForPPO(nn.Module):
    def __init__(self, chunk_size: int = 512, impl_backend: str = "torch") -> None:
        super().__init__()

    def forward(
        self,
        hidden_states: Tensor,
        vocab_weights: Tensor,
        input_ids: Tensor,
        temperature: float = 1.0,
    ) -> tuple[Tensor, Tensor]:
        logits = (hidden_states @ vocab_weights.T).float() / temperature
        logp = logits.log_softmax(-1)
        entropy = -(logp.exp() * logp).sum(-1)
        return logp.gather(-1, input_ids[..., None])[..., 0], entropy


def agg_loss(
    loss_mat: Tensor,
    loss_mask: Tensor,
    loss_agg_mode: str,
    dp_size: int = 1,
    batch_num_tokens: int | None = None,
    global_batch_size: int | None = None,
    loss_scale_factor: int | None = None,
) -> Tensor:
    assert loss_agg_mode == "token-mean"
    return (loss_mat * loss_mask).sum() / (batch_num_tokens or loss_mask.sum()) * dp_size


def no_padding_2_padding(tensor: Tensor, data: Any) -> Tensor:
    """`[all tokens, *]` -> `[B, longest response, *]`, moved one to the left."""
    prompt_width = data["prompts"].shape[1]
    responses = data["attention_mask"][:, prompt_width:].sum(1)
    out = tensor.new_zeros(len(responses), data["responses"].shape[1], *tensor.shape[1:])
    end = 0
    for row, length in enumerate(responses.tolist()):
        end += int(data["attention_mask"][row].sum())
        out[row, :length] = tensor[end - length - 1 : end - 1]
    return out
