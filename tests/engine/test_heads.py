"""`LMHead`: what it accepts, what it refuses, and what it computes."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdkernels as sd

V, D = 9, 4
WEIGHT = torch.randn(V, D, generator=torch.Generator().manual_seed(0))


class Shard(Tensor):
    """Looks like torch's DTensor, without a process group."""

    device_mesh = "mesh"
    full_tensor = None


class AffineQuantizedTensor(Tensor):
    """Like torchao's: says that it is float32, and is not."""


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        ([[1.0]], TypeError, "weight: expected a tensor [V, D], got list"),
        (nn.Linear(D, V), TypeError, "got the module Linear; use LMHead.from_model(model)"),
        (
            WEIGHT.as_subclass(Shard),
            TypeError,
            "weight is a DTensor (a shard under FSDP2 or tensor",
        ),
        (WEIGHT.as_subclass(Shard), TypeError, "gather it first with weight.full_tensor()"),
        (
            WEIGHT[:0],
            ValueError,
            "weight is empty, shape [0, 4] (a ZeRO-3 shard?): gather it first",
        ),
        (torch.empty(0), ValueError, "deepspeed.zero.GatheredParameters([weight]"),
        (WEIGHT[0], ValueError, "weight: expected shape [V, D], got [4]"),
        (WEIGHT[None], ValueError, "weight: expected shape [V, D], got [1, 9, 4]"),
        (
            WEIGHT.to(torch.int8),
            TypeError,
            "weight has dtype torch.int8 (a quantised head?): accept",
        ),
        (WEIGHT.to(torch.float8_e4m3fn), TypeError, "bfloat16, float16; dequantise it first"),
        (
            WEIGHT.as_subclass(AffineQuantizedTensor),
            TypeError,
            "weight is a AffineQuantizedTensor, a quantised head: dequantise it first",
        ),
    ],
)
def test_weight(weight: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        sd.LMHead(weight)


@pytest.mark.parametrize(
    ("bias", "error", "message"),
    [
        ([0.0] * V, TypeError, "bias: expected a tensor [V] or None, got list"),
        (torch.zeros(V - 1), ValueError, "bias: expected shape [V] = [9], got [8]"),
        (torch.zeros(V, 1), ValueError, "bias: expected shape [V] = [9], got [9, 1]"),
        (
            torch.zeros(V, dtype=torch.int64),
            TypeError,
            "bias: expected a floating dtype, got torch.i",
        ),
        (
            torch.zeros(V, device="meta"),
            ValueError,
            "bias is on meta, weight on cpu: move one of th",
        ),
        (torch.zeros(V).as_subclass(Shard), TypeError, "bias is a DTensor: gather it first"),
    ],
)
def test_bias(bias: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        sd.LMHead(WEIGHT, bias)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"scale": 0.0}, "scale=0.0: expected a finite number above 0"),
        ({"scale": -1.0}, "scale=-1.0: expected a finite number above 0"),
        ({"scale": float("inf")}, "scale=inf: expected a finite number above 0"),
        ({"scale": float("nan")}, "scale=nan: expected a finite number above 0"),
        ({"softcap": 0.0}, "softcap=0.0: expected a finite number above 0, or None"),
        ({"softcap": float("inf")}, "softcap=inf: expected a finite number above 0, or None"),
        ({"softcap": float("nan")}, "softcap=nan: expected a finite number above 0, or None"),
        ({"scale": "1"}, "scale='1': expected a finite number above 0"),
        ({"scale": None}, "scale=None: expected a finite number above 0"),
        ({"scale": True}, "scale=True: expected a finite number above 0"),
        ({"scale": torch.tensor(2.0)}, "scale=tensor(2.): expected a finite number above 0"),
        ({"softcap": "30"}, "softcap='30': expected a finite number above 0, or None"),
        ({"softcap": True}, "softcap=True: expected a finite number above 0, or None"),
        ({"valid_vocab": True}, "valid_vocab=True: expected a whole number from 1 to V = 9"),
        ({"valid_vocab": 0}, "valid_vocab=0: expected a whole number from 1 to V = 9, or None"),
        ({"valid_vocab": 10}, "valid_vocab=10: expected a whole number from 1 to V = 9"),
        ({"valid_vocab": 5.0}, "valid_vocab=5.0: expected a whole number from 1 to V = 9"),
    ],
)
def test_settings(setting: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        sd.LMHead(WEIGHT, **setting)


def test_repr_names_what_is_set() -> None:
    assert repr(sd.LMHead(WEIGHT)) == "LMHead(weight 9x4 float32)"
    head = sd.LMHead(WEIGHT, torch.zeros(V), scale=0.5, softcap=30.0, valid_vocab=7)
    assert repr(head) == "LMHead(weight 9x4 float32, bias, scale=0.5, softcap=30, valid_vocab=7)"


@pytest.mark.parametrize("bias", [False, True])
def test_a_weight_or_a_linear_layer_serves_as_head(bias: bool) -> None:
    layer = nn.Linear(D, V, bias=bias)
    hidden = torch.randn(5, D)
    expected = layer(hidden).log_softmax(-1)
    stats = sd.token_stats(hidden, layer, topk=V)
    torch.testing.assert_close(stats.topk_logp, expected.gather(-1, stats.topk_ids))
    stats.entropy.sum().backward()
    assert layer.weight.grad is not None
    if not bias:
        again = sd.token_stats(hidden, layer.weight, topk=V)
        assert torch.equal(again.topk_logp, stats.topk_logp)


@pytest.mark.parametrize("layer", [nn.Conv1d(D, V, 1), nn.Bilinear(D, D, V), nn.LayerNorm(D)])
def test_other_layers_are_refused(layer: nn.Module) -> None:
    with pytest.raises(TypeError, match=r"expected a plain nn\.Linear"):
        sd.token_stats(torch.randn(5, D), layer)


def test_a_modified_linear_layer_is_refused() -> None:
    class ScaledLinear(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 0.5

    with pytest.raises(
        TypeError, match=r"ScaledLinear is a modified nn\.Linear and may compute more"
    ):
        sd.token_stats(torch.randn(5, D), ScaledLinear(D, V))
    normed = nn.utils.parametrizations.weight_norm(nn.Linear(D, V))
    with pytest.raises(TypeError, match=r"is a modified nn\.Linear"):
        sd.token_stats(torch.randn(5, D), normed)


def test_banned_ids_of_the_bias_get_no_probability_and_no_gradient() -> None:
    bias = torch.zeros(V).index_fill(0, torch.tensor([2, 5]), -torch.inf).requires_grad_()
    weight = WEIGHT.clone().requires_grad_()
    stats = sd.token_stats(torch.randn(5, D), sd.LMHead(weight, bias), topk=V)
    assert stats.topk_logp[:, -2:].isneginf().all()
    assert {int(i) for i in stats.topk_ids[:, -2:].flatten()} == {2, 5}
    (stats.entropy + stats.lse).sum().backward()
    assert weight.grad.isfinite().all()
    assert not weight.grad[[2, 5]].any()
    assert not bias.grad[[2, 5]].any()


def test_padding_behind_valid_vocab_gets_no_probability_and_no_gradient() -> None:
    weight = torch.cat([WEIGHT, torch.full((3, D), 1e4)]).requires_grad_()
    bias = torch.zeros(V + 3, requires_grad=True)
    hidden = torch.randn(5, D)
    stats = sd.token_stats(hidden, sd.LMHead(weight, bias, valid_vocab=V))
    torch.testing.assert_close(stats.lse, (hidden @ WEIGHT.t()).logsumexp(-1))
    (stats.entropy + stats.lse).sum().backward()
    assert weight.grad[:V].any()
    assert not weight.grad[V:].any()
    assert not bias.grad[V:].any()
