"""Deferred logits stand for exactly what the model would have returned."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.tiny_models import FAMILIES, calls_of, tiny_causal_lm

from sdkernels.integrations.deferred import (
    DeferredLogits,
    backbone_of,
    deferring,
    head_as_computed,
    innermost,
)

IDS = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])


def deferred(model: Any, **kwargs: Any) -> DeferredLogits:
    with deferring(model):
        found: DeferredLogits = model(input_ids=IDS, **kwargs).logits
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_log_probs_are_those_of_the_model(family: str) -> None:
    model = tiny_causal_lm(family)
    expected = (model(input_ids=IDS).logits / 0.7).log_softmax(-1)
    logits = deferred(model) / 0.7
    assert logits.shape == expected.shape
    assert logits.device == expected.device
    chosen = expected.gather(-1, IDS[..., None]).squeeze(-1)
    torch.testing.assert_close(logits.logp(IDS), chosen)
    mask = torch.tensor([[True, False, True, True], [False] * 4])
    torch.testing.assert_close(logits.logp(IDS, mask), chosen * mask)


def test_cutting_and_dividing_compose() -> None:
    model = tiny_causal_lm()
    whole = model(input_ids=IDS).logits
    cut = (deferred(model)[:, :-1, :] / 2.0)[:, -2:] / 3.0
    expected = (whole[:, 1:3] / 6.0).log_softmax(-1).gather(-1, IDS[:, 2:, None]).squeeze(-1)
    torch.testing.assert_close(cut.logp(IDS[:, 2:]), expected)


@pytest.mark.parametrize("index", [(0,), (slice(None), slice(None), slice(0, 3)), 1])
def test_other_ways_of_indexing_are_refused(index: Any) -> None:
    with pytest.raises(TypeError, match="no vocabulary axis"):
        deferred(tiny_causal_lm())[index]


def test_logits_to_keep() -> None:
    model = tiny_causal_lm()
    kept = deferred(model, logits_to_keep=2)
    torch.testing.assert_close(kept.hidden, deferred(model).hidden[:, -2:])
    assert deferred(model, logits_to_keep=0).hidden.shape[1] == 4


def test_positions_to_keep_as_a_tensor() -> None:
    model = tiny_causal_lm()
    positions = torch.tensor([0, 2])
    kept = deferred(model, logits_to_keep=positions)
    expected = model(input_ids=IDS, logits_to_keep=positions).logits
    assert kept.shape == expected.shape
    chosen = expected.log_softmax(-1).gather(-1, IDS[:, :2, None]).squeeze(-1)
    torch.testing.assert_close(kept.logp(IDS[:, :2]), chosen)


@pytest.mark.parametrize("wanted", [{}, {"use_cache": None}], ids=str)
def test_no_cache_is_made_unless_asked_for(wanted: dict[str, Any]) -> None:
    model = tiny_causal_lm()
    seen: list[Any] = []
    model.model.register_forward_hook(lambda *a: seen.append(a[-1].past_key_values))
    deferred(model, **wanted)
    assert seen == [None]


def test_the_head_is_not_applied_and_the_forward_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny_causal_lm()
    calls = calls_of(model.lm_head, monkeypatch)
    deferred(model)
    assert calls == []
    assert "forward" not in vars(model)
    assert isinstance(model(input_ids=IDS).logits, torch.Tensor)


def test_labels_are_refused() -> None:
    with pytest.raises(TypeError, match="labels"):
        deferred(tiny_causal_lm(), labels=IDS)


def test_wrappers_are_looked_through() -> None:
    from peft import LoraConfig, get_peft_model

    model = tiny_causal_lm()
    adapted = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"]))
    wrapped = torch.nn.DataParallel(adapted)
    assert innermost(wrapped) is innermost(torch.nn.DataParallel(wrapped)) is model
    assert backbone_of(model) is model.model


def test_a_model_without_a_backbone_is_refused() -> None:
    with pytest.raises(TypeError, match="Linear has no base_model"):
        backbone_of(torch.nn.Linear(2, 2))
    model = tiny_causal_lm()
    with pytest.raises(TypeError, match="LlamaModel has no base_model"):
        backbone_of(model.model)


def test_autocast_decides_the_dtype_of_the_product() -> None:
    model = tiny_causal_lm().float()
    with deferring(model, lambda: torch.autocast("cpu", dtype=torch.bfloat16)):
        logits = model(input_ids=IDS).logits
    assert logits.hidden.dtype == logits.head.weight.dtype == torch.bfloat16
    logits.logp(IDS).sum().backward()
    assert model.lm_head.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("family", ["Gemma3", "Cohere", "Granite"])
def test_autocast_keeps_what_a_family_does_to_its_logits(family: str) -> None:
    model = tiny_causal_lm(family).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(input_ids=IDS).logits.float().log_softmax(-1)
    with deferring(model, lambda: torch.autocast("cpu", dtype=torch.bfloat16)):
        logits = model(input_ids=IDS).logits
    chosen = expected.gather(-1, IDS[..., None]).squeeze(-1)
    torch.testing.assert_close(logits.logp(IDS).float(), chosen, rtol=3e-2, atol=3e-2)


def test_autocast_takes_bias_and_padding_along() -> None:
    model = tiny_causal_lm().float()
    model.lm_head.bias = torch.nn.Parameter(torch.randn(259))
    model.config.unpadded_vocab_size = 250
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head = head_as_computed(model, "cpu")
    assert head.weight.dtype == head.bias.dtype == torch.bfloat16
    assert head.valid_vocab == 250
