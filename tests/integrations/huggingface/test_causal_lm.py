"""A patched model computes the loss and gradients that it computes without the patch."""

from __future__ import annotations

import copy
import inspect
import types
from typing import Any

import pytest
import torch
from helpers.tiny_models import FAMILIES, calls_of, tiny_causal_lm
from peft import LoraConfig, get_peft_model
from transformers import BartConfig, BartForCausalLM

import sdkernels as sd
from sdkernels.train.kv_cache import cache_name

IDS = torch.tensor([[5, 6, 7, 8, 9], [9, 10, 11, 12, 2]])
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 1, 0]])
LABELS = torch.tensor([[-100, -100, 7, 8, 9], [9, 10, 11, 12, -100]])
# transformers computes its loss in float32 whatever the model's dtype.
CLOSE = {"rtol": 2e-6, "atol": 1e-7}


def inputs(**more: Any) -> dict[str, Any]:
    return {"input_ids": IDS, "attention_mask": MASK, "labels": LABELS} | more


def run(model: Any, **more: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    model.zero_grad()
    loss = model(**inputs(**more)).loss
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


def agree(model: Any, **more: Any) -> None:
    model.train()
    loss, grads = run(model, **more)
    with sd.patch(model):
        ours, our_grads = run(model, **more)
    assert ours.item() == pytest.approx(loss.item(), rel=2e-6)
    torch.testing.assert_close(our_grads, grads, check_dtype=False, **CLOSE)


@pytest.mark.parametrize("family", FAMILIES)
def test_families(family: str) -> None:
    agree(tiny_causal_lm(family))


@pytest.mark.parametrize(
    "more",
    [
        {"num_items_in_batch": 11},
        {"num_items_in_batch": torch.tensor(7)},
        {"shift_labels": LABELS.flip(1)},
        {"labels": LABELS.masked_fill(LABELS == -100, 7), "ignore_index": 7},
    ],
    ids=["int", "tensor", "shift_labels", "ignore_index"],
)
def test_arguments_of_the_loss(more: dict[str, Any]) -> None:
    agree(tiny_causal_lm(), **more)


def test_tied_resized_and_adapted_models() -> None:
    agree(tiny_causal_lm(tie_word_embeddings=True))
    model = tiny_causal_lm()
    model.resize_token_embeddings(270)
    agree(model)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["lm_head"])
    agree(get_peft_model(tiny_causal_lm(), config))


def test_other_outputs_are_the_models() -> None:
    model = tiny_causal_lm().train()
    expected = model(**inputs(output_hidden_states=True, use_cache=True))
    sd.patch(model)
    found = model(**inputs(output_hidden_states=True, use_cache=True))
    torch.testing.assert_close(found.hidden_states, expected.hidden_states)
    assert found[cache_name()].get_seq_length() == IDS.shape[1]
    as_tuple = model(**inputs(return_dict=False))
    assert isinstance(as_tuple, tuple)
    torch.testing.assert_close(as_tuple[0], found.loss)


def test_attentions_are_the_models() -> None:
    model = tiny_causal_lm(attn_implementation="eager").train()
    expected = model(**inputs(output_attentions=True)).attentions
    with sd.patch(model):
        found = model(**inputs(output_attentions=True)).attentions
    assert len(found) == 2
    torch.testing.assert_close(found, expected)


def test_the_head_is_not_applied(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_causal_lm().train()
    calls = calls_of(model.lm_head, monkeypatch)
    sd.patch(model)
    model(**inputs()).loss.backward()
    assert calls == []


def test_logits_are_there_without_labels_and_in_evaluation() -> None:
    model = tiny_causal_lm()
    expected = model.eval()(**inputs())
    sd.patch(model)
    assert model.eval()(**inputs()).logits.equal(expected.logits)
    assert model.train()(input_ids=IDS, attention_mask=MASK).logits.equal(expected.logits)


def test_no_logits_in_evaluation_either_if_asked() -> None:
    model = tiny_causal_lm().eval()
    expected = model(**inputs()).loss
    sd.patch(model, logits_in_eval=False)
    found = model(**inputs())
    assert found.loss.item() == pytest.approx(expected.item(), rel=2e-6)
    assert not isinstance(found.logits, torch.Tensor)


def test_deferred_logits_say_what_they_are() -> None:
    model = tiny_causal_lm().train()
    expected = model(**inputs()).logits.log_softmax(-1)
    sd.patch(model)
    logits = model(**inputs()).logits
    torch.testing.assert_close(logits.logp(IDS), expected.gather(-1, IDS[..., None]).squeeze(-1))
    with pytest.raises(AttributeError, match=r"\.argmax: these logits were not made"):
        logits.argmax(-1)
    with pytest.raises(TypeError, match=r"softmax\(\): these logits were not made"):
        torch.softmax(logits, -1)


def test_generation_and_its_signature_are_unchanged() -> None:
    model = tiny_causal_lm().eval()
    settings = {"max_new_tokens": 4, "do_sample": False}
    expected = model.generate(IDS[:1], **settings)
    signature = inspect.signature(model.forward)
    sd.patch(model)
    assert model.generate(IDS[:1], **settings).equal(expected)
    assert inspect.signature(model.forward).parameters.keys() == signature.parameters.keys()


def test_undo() -> None:
    model = tiny_causal_lm().train()
    undo = sd.patch(model)
    with pytest.raises(TypeError, match="patch was called on this LlamaForCausalLM before"):
        sd.patch(model)
    undo()
    assert "forward" not in vars(model)
    assert isinstance(model(**inputs()).logits, torch.Tensor)


def test_undo_gives_back_a_forward_of_the_instance() -> None:
    """accelerate and quantisers put one there."""
    model = tiny_causal_lm().train()
    calls: list[int] = []
    original = model.forward

    def own(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    model.forward = own
    sd.patch(model)()
    assert model.forward is own
    model(**inputs())
    assert calls == [1]


def test_undo_reaches_through_what_wrapped_the_forward_since() -> None:
    model = tiny_causal_lm().train()
    undo = sd.patch(model)
    inner = model.forward
    model.forward = lambda *args, **kwargs: inner(*args, **kwargs)
    undo()
    assert isinstance(model(**inputs()).logits, torch.Tensor)


def test_a_copy_computes_with_its_own_weights() -> None:
    model = tiny_causal_lm().train()
    sd.patch(model)
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.lm_head.weight.zero_()
    assert twin(**inputs()).loss.item() == pytest.approx(torch.tensor(259.0).log().item())


@pytest.mark.parametrize("before", ["class", "instance"])
@pytest.mark.parametrize("undone", [False, True])
def test_a_copy_s_logits_are_its_own_too(undone: bool, before: str) -> None:
    """Reference models are copies; they must not follow the student."""
    model = tiny_causal_lm().train()
    if before == "instance":  # as accelerate leaves it behind
        model.forward = types.MethodType(type(model).forward, model)
    undo = sd.patch(model)
    twin = copy.deepcopy(model)
    if undone:
        undo()
    with torch.no_grad():
        model.lm_head.weight.zero_()
    expected = tiny_causal_lm()
    assert twin(IDS).logits.equal(expected(IDS).logits)
    loss = twin.eval()(**inputs()).loss
    assert loss.item() == pytest.approx(expected.eval()(**inputs()).loss.item())


def test_labels_by_position() -> None:
    model = tiny_causal_lm().train()
    expected = model(IDS, None, None, None, None, LABELS).loss
    sd.patch(model)
    outputs = model(IDS, None, None, None, None, LABELS)
    assert not isinstance(outputs.logits, torch.Tensor)
    assert outputs.loss.item() == pytest.approx(expected.item())


def test_tuples_by_the_config() -> None:
    model = tiny_causal_lm().train()
    expected = model(**inputs()).loss
    model.config.return_dict = False
    sd.patch(model)
    found = model(**inputs())
    assert isinstance(found, tuple)
    assert found[0].item() == pytest.approx(expected.item())
    assert not isinstance(model(**inputs(return_dict=True)), tuple)


def test_no_label_gives_zero() -> None:
    model = tiny_causal_lm().train()
    sd.patch(model)
    loss, grads = run(model, labels=torch.full_like(IDS, -100))
    assert loss == 0
    assert grads["lm_head.weight"].abs().max() == 0
    loss, _ = run(model, labels=torch.full_like(IDS, -100), num_items_in_batch=0)
    assert loss == 0


def test_bfloat16_autocast() -> None:
    model = tiny_causal_lm().float().train()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = model(**inputs()).loss
        sd.patch(model)
        assert model(**inputs()).loss.item() == pytest.approx(expected.item(), rel=1e-2)


@pytest.mark.parametrize("more", [{"logits_to_keep": 2}, {"output_router_logits": True}])
def test_arguments_that_need_logits_are_refused(more: dict[str, Any]) -> None:
    model = tiny_causal_lm().train()
    sd.patch(model)
    with pytest.raises(ValueError, match="can't be combined with labels"):
        model(**inputs(**more))


def test_models_that_are_refused() -> None:
    config = LoraConfig(r=2, target_modules=["lm_head"])
    with pytest.raises(TypeError, match="Leave lm_head out"):
        sd.patch(get_peft_model(tiny_causal_lm(), config))
    own = tiny_causal_lm()
    own.loss_function = torch.nn.functional.cross_entropy
    with pytest.raises(ValueError, match="loss_function is cross_entropy"):
        sd.patch(own)
    # Its labels are compared with the logits of the same position.
    settings = {"vocab_size": 30, "d_model": 8, "decoder_layers": 1, "decoder_attention_heads": 1}
    with pytest.raises(ValueError, match=r"BartForCausalLM.forward does not call"):
        sd.patch(BartForCausalLM(BartConfig(**settings)))
    experts = tiny_causal_lm()
    experts.config.output_router_logits = True
    with pytest.raises(ValueError, match="output_router_logits=True"):
        sd.patch(experts)
    with pytest.raises(TypeError, match="no base_model"):
        sd.patch(tiny_causal_lm().model)


def test_experts_below_a_multimodal_model_are_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_causal_lm()
    text = copy.copy(model.config)
    text.output_router_logits = True
    monkeypatch.setattr(type(model.config), "get_text_config", lambda self: text)
    with pytest.raises(ValueError, match="output_router_logits=True"):
        sd.patch(model)
