"""`LMHead.from_model`: our logits are the model's own, for every family with a transform.

A head that skips one trains another objective without a sign of it, and parity on Llama or Qwen
cannot see it; so each family is a random model with its transforms far from 1.
"""

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import sdkernels as sd

transformers = pytest.importorskip("transformers")
VOCAB = 48
SMALL: dict[str, Any] = {
    "vocab_size": VOCAB,
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
GPT: dict[str, Any] = {
    "vocab_size": VOCAB,
    "n_embd": 32,
    "n_layer": 1,
    "n_head": 4,
    "n_positions": 64,
}
LATENT = {
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
}

# class, config class, settings, what the head must have
FAMILIES: dict[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", SMALL, {}),
    "Llama_tied": ("LlamaForCausalLM", {**SMALL, "tie_word_embeddings": True}, {}),
    "Qwen3": ("Qwen3ForCausalLM", {**SMALL, "head_dim": 8}, {}),
    "Gemma2": (
        "Gemma2ForCausalLM",
        {**SMALL, "head_dim": 8, "final_logit_softcapping": 0.7},
        {"softcap": 0.7},
    ),
    "Gemma3": (
        "Gemma3ForCausalLM",
        {**SMALL, "head_dim": 8, "final_logit_softcapping": 0.7},
        {"softcap": 0.7},
    ),
    "NanoChat": (
        "NanoChatForCausalLM",
        {**SMALL, "final_logit_softcapping": 0.7},
        {"softcap": 0.7},
    ),
    "RecurrentGemma": (
        "RecurrentGemmaForCausalLM",
        {**SMALL, "logits_soft_cap": 0.7, "lru_width": 32, "head_dim": 8},
        {"softcap": 0.7},
    ),
    "Cohere": ("CohereForCausalLM", {**SMALL, "logit_scale": 0.3}, {"scale": 0.3}),
    "Cohere2": ("Cohere2ForCausalLM", {**SMALL, "logit_scale": 0.3}, {"scale": 0.3}),
    "Granite": ("GraniteForCausalLM", {**SMALL, "logits_scaling": 4.0}, {"scale": 0.25}),
    "GraniteMoe": (
        "GraniteMoeForCausalLM",
        {**SMALL, "logits_scaling": 4.0, "num_local_experts": 2, "num_experts_per_tok": 1},
        {"scale": 0.25},
    ),
    "HyperCLOVAX": ("HyperCLOVAXForCausalLM", {**SMALL, "logits_scaling": 4.0}, {"scale": 4.0}),
    "MiniCPM3": (
        "MiniCPM3ForCausalLM",
        {**SMALL, **LATENT, "num_key_value_heads": 4, "dim_model_base": 8},
        {"scale": 0.25},
    ),
    "Inkling2": (
        "Inkling2ForCausalLM",
        {**SMALL, "final_logit_softcapping": 0.7, "unpadded_vocab_size": 40, "head_dim": 8},
        {"softcap": 0.7, "valid_vocab": 40},
    ),
    "Phi_with_bias": ("PhiForCausalLM", SMALL, {"bias": True}),
    "GPT2": ("GPT2LMHeadModel", GPT, {}),
    "GPTJ_with_bias": ("GPTJForCausalLM", {**GPT, "rotary_dim": 8}, {"bias": True}),
    "MPT_ignores_its_logit_scale": (
        "MptForCausalLM",
        {"vocab_size": VOCAB, "d_model": 32, "n_heads": 4, "n_layers": 1, "logit_scale": 0.3},
        {},
    ),
}


def build(class_name: str, settings: dict[str, Any]) -> Any:
    model_class = getattr(transformers, class_name, None)
    if model_class is None:
        pytest.skip(f"this transformers has no {class_name}")
    torch.manual_seed(0)
    model = model_class(model_class.config_class(**settings)).eval()
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
        elif parameter.dim() > 1:
            parameter.data.mul_(8.0)
    return model


def logp_of(hidden: Tensor, head: sd.LMHead) -> Tensor:
    """log-softmax over the whole vocabulary, by the engine."""
    stats = sd.token_stats(hidden, head, topk=head.vocab)
    return torch.empty_like(stats.topk_logp).scatter(-1, stats.topk_ids, stats.topk_logp)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_logits_are_those_of_the_model(family: str) -> None:
    class_name, settings, expected = FAMILIES[family]
    model = build(class_name, settings)
    head = sd.LMHead.from_model(model)
    assert head.scale == pytest.approx(expected.get("scale", 1.0))
    assert head.softcap == expected.get("softcap")
    assert head.valid_vocab == expected.get("valid_vocab")
    assert (head.bias is not None) == expected.get("bias", False)
    ids = torch.randint(3, 40, (2, 7))
    hidden = model.base_model(input_ids=ids, use_cache=False).last_hidden_state
    logits = model(input_ids=ids, use_cache=False).logits
    assert logits.std() > 0.2, "nearly uniform logits can't tell transforms apart"
    torch.testing.assert_close(logp_of(hidden, head), logits.log_softmax(-1), rtol=1e-5, atol=1e-5)


def test_gradients_reach_the_model() -> None:
    model = build("LlamaForCausalLM", {**SMALL, "tie_word_embeddings": True})
    ids = torch.randint(3, 40, (2, 7))

    def grads_of(loss: Tensor) -> list[Tensor]:
        return list(torch.autograd.grad(loss, list(model.parameters())))

    expected = grads_of(model(input_ids=ids, labels=ids).loss)
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    head = sd.LMHead.from_model(model)
    loss, _ = sd.token_loss(hidden, head, lambda s, tok: -s.logp / 12, targets=ids[:, 1:])
    for got, wanted in zip(grads_of(loss), expected, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-4, atol=1e-5)


# --- refused by name ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("class_name", "settings", "message"),
    [
        (
            "BertLMHeadModel",
            {**SMALL, "is_decoder": True},
            "cls.predictions.decoder is part of Bert",
        ),
        (
            "RobertaForCausalLM",
            {**SMALL, "is_decoder": True},
            "lm_head.decoder is part of RobertaLM",
        ),
        (
            "ElectraForCausalLM",
            {**SMALL, "is_decoder": True},
            "for electra: a prediction head transf",
        ),
        (
            "ModernBertDecoderForCausalLM",
            SMALL,
            "for modernbert-decoder: a prediction head transform",
        ),
        (
            "T5ForConditionalGeneration",
            {"vocab_size": VOCAB, "d_model": 32, "d_ff": 48, "num_layers": 1, "num_heads": 4},
            "T5ForConditionalGeneration is an encoder-decoder",
        ),
        (
            "BartForConditionalGeneration",
            {"vocab_size": VOCAB, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1},
            "BartForConditionalGeneration is an encoder-decoder",
        ),
    ],
)
def test_models_that_do_more_are_refused(
    class_name: str, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        sd.LMHead.from_model(build(class_name, settings))


def test_a_model_without_output_projection_is_refused() -> None:
    with pytest.raises(TypeError, match="LlamaModel has no output embedding"):
        sd.LMHead.from_model(build("LlamaModel", SMALL))
    with pytest.raises(TypeError, match="Linear has no output embedding"):
        sd.LMHead.from_model(nn.Linear(3, 4))


class Stub:
    """A model of another library: an output projection and a config, nothing else."""

    def __init__(self, **settings: Any) -> None:
        self.config = type("Config", (), {})()
        vars(self.config).update(settings)
        self.layer = nn.Linear(32, VOCAB, bias=settings.pop("head_bias", False))

    def get_output_embeddings(self) -> nn.Module:
        return self.layer


@pytest.mark.parametrize(
    ("settings", "scale", "softcap"),
    [
        ({"output_multiplier_scale": 0.5}, 0.5, None),
        ({"output_multiplier": 0.25, "final_logit_softcapping": 20.0}, 0.25, 20.0),
        ({"output_logit_soft_cap": 30.0}, 1.0, 30.0),
        ({"lm_head_multiplier": 2}, 2.0, None),
        ({"dim_model_base": 8, "hidden_size": 32, "model_type": "minicpm"}, 0.25, None),
        ({"logits_mup_width_multiplier": 4.0}, 0.25, None),
        ({"final_logit_softcapping": None, "logit_scale": None}, 1.0, None),
        ({"attn_logit_softcapping": 50.0, "moe_router_logit_softcapping": 3.0}, 1.0, None),
        (
            {"num_logits_to_keep": 2, "output_router_logits": True, "embedding_multiplier": 12},
            1.0,
            None,
        ),
    ],
)
def test_names_in_configs(settings: dict[str, Any], scale: float, softcap: float | None) -> None:
    head = sd.LMHead.from_model(Stub(**settings))
    assert (head.scale, head.softcap) == (scale, softcap)


@pytest.mark.parametrize(
    "settings",
    [{"logits_temperature": 0.7}, {"output_logits_scale": 3.0}, {"mup_width_scale": 0.1}],
)
def test_unknown_transforms_are_refused(settings: dict[str, Any]) -> None:
    (name,) = settings
    with pytest.raises(ValueError, match=f"config.{name}=.* looks like a transform of the logits"):
        sd.LMHead.from_model(Stub(**settings))


def test_settings_that_a_head_cannot_express_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"config\.logit_scale='inv_sqrt_d_model': LMHead knows numb"
    ):
        sd.LMHead.from_model(Stub(logit_scale="inv_sqrt_d_model"))
    with pytest.raises(
        ValueError, match="scales hidden states before an output projection with a b"
    ):
        sd.LMHead.from_model(Stub(logits_mup_width_multiplier=4.0, head_bias=True))


def test_an_explicit_valid_vocab_wins_over_the_config() -> None:
    assert sd.LMHead.from_model(Stub(unpadded_vocab_size=40)).valid_vocab == 40
    assert sd.LMHead.from_model(Stub(unpadded_vocab_size=40), valid_vocab=30).valid_vocab == 30


# --- wrappers -------------------------------------------------------------------------------------


def test_lora_on_the_head_is_refused_and_elsewhere_is_fine() -> None:
    peft = pytest.importorskip("peft")
    on_head = peft.LoraConfig(target_modules=["q_proj", "lm_head"])
    with pytest.raises(
        TypeError, match=r"carries an adapter \(LoRA\).*Leave lm_head out of target"
    ):
        sd.LMHead.from_model(peft.get_peft_model(build("LlamaForCausalLM", SMALL), on_head))
    model = build("LlamaForCausalLM", SMALL)
    wrapped = peft.get_peft_model(model, peft.LoraConfig(target_modules=["q_proj"]))
    assert sd.LMHead.from_model(wrapped).weight is model.lm_head.weight


@torch.no_grad()
def test_the_trained_copy_of_peft_is_used_while_its_adapter_is_on() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    wrapped = peft.get_peft_model(build("LlamaForCausalLM", SMALL), config).eval()
    copy = wrapped.get_base_model().lm_head.modules_to_save["default"]
    copy.weight.mul_(1.5)
    ids = torch.randint(3, 40, (1, 6))
    for adapter_on in (True, False):
        with torch.no_grad() if adapter_on else wrapped.disable_adapter():
            head = sd.LMHead.from_model(wrapped)
            assert (head.weight is copy.weight) == adapter_on
            hidden = wrapped.get_base_model().model(input_ids=ids).last_hidden_state
            logits = wrapped(input_ids=ids).logits
        torch.testing.assert_close(logp_of(hidden, head), logits.log_softmax(-1))


def test_wrappers_of_the_model_are_looked_through() -> None:
    model = build("LlamaForCausalLM", SMALL)

    class Wrapper(nn.Module):  # as DistributedDataParallel does
        def __init__(self) -> None:
            super().__init__()
            self.module = model

    assert sd.LMHead.from_model(Wrapper()).weight is model.lm_head.weight


def test_a_hook_on_the_head_is_warned_of() -> None:
    model = build("LlamaForCausalLM", SMALL)
    handle = model.lm_head.register_forward_hook(lambda module, args, output: 3 * output)
    with pytest.warns(UserWarning, match=r"this Linear has a forward hook .*lambda"):
        sd.LMHead.from_model(model)
    handle.remove()
    model.enable_input_require_grads()  # its hook is on the input embedding
    sd.LMHead.from_model(model)


def test_a_hook_around_pefts_copy_is_warned_of() -> None:
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules=["q_proj"], modules_to_save=["lm_head"])
    wrapped = peft.get_peft_model(build("LlamaForCausalLM", SMALL), config)
    wrapper = wrapped.get_base_model().lm_head
    wrapper.register_forward_hook(lambda module, args, output: 3 * output)
    with pytest.warns(UserWarning, match="this ModulesToSaveWrapper has a forward hook"):
        sd.LMHead.from_model(wrapped)


def test_hooks_of_an_input_embedding_are_not_the_heads() -> None:
    """With a tied embedding as output layer, the hook acts on the look-up."""
    stub = Stub()
    stub.layer = nn.Embedding(VOCAB, 32)
    stub.layer.register_forward_hook(lambda module, args, output: output.requires_grad_(True))
    assert sd.LMHead.from_model(stub).weight is stub.layer.weight
