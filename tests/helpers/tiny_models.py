"""Random two-layer models of several architectures, and a byte-level tokenizer with ChatML."""

from __future__ import annotations

from typing import Any

import torch

CHATML = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] "
    "}}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def byte_tokenizer() -> Any:
    """256 bytes and three control tokens, no merges."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    specials = ["<|im_end|>", "<|im_start|>", "<|pad|>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*specials, *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        bos_token="<|im_start|>",
        pad_token="<|pad|>",
    )
    wrapped.chat_template = CHATML
    return wrapped


# What each family does to its logits that a bare product would miss.
FAMILIES: dict[str, dict[str, Any]] = {
    "Llama": {},
    "Qwen2": {},
    # Gemma 2 has eager attention only, which is NaN at left padding in float64.
    "Gemma3": {"final_logit_softcapping": 3.0, "head_dim": 8},
    "Cohere": {"logit_scale": 0.25},
    "Granite": {"logits_scaling": 4.0},
}


def tiny_causal_lm(family: str = "Llama", *, seed: int = 0, **changes: Any) -> Any:
    """A random model with hidden size 32, two layers and 259 tokens, float64."""
    import transformers

    settings: dict[str, Any] = {
        "vocab_size": 259,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "initializer_range": 0.2,
        "eos_token_id": 0,
        "bos_token_id": 1,
        "pad_token_id": 2,
    }
    torch.manual_seed(seed)
    name = "Gemma3TextConfig" if family == "Gemma3" else f"{family}Config"
    config = getattr(transformers, name)(**(settings | FAMILIES[family] | changes))
    return getattr(transformers, f"{family}ForCausalLM")(config).double()


def calls_of(layer: torch.nn.Linear, monkeypatch: Any) -> list[int]:
    """A list that grows with every call of `layer`, without a hook on it."""
    calls: list[int] = []
    forward = torch.nn.Linear.forward

    def counting(self: torch.nn.Linear, hidden: torch.Tensor) -> torch.Tensor:
        if self is layer:
            calls.append(1)
        return forward(self, hidden)

    monkeypatch.setattr(torch.nn.Linear, "forward", counting)
    return calls
