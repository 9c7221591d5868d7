"""What a transformers model does between its last hidden states and its logits.

Read from the model's own config and modules; whatever this module does not know for certain it
refuses by name, since a wrong guess trains another objective without a sign of it.

Sources: the `forward` of every class of `MODEL_FOR_CAUSAL_LM_MAPPING` in transformers 5.23, and
modeling_minicpm.py (openbmb/MiniCPM-2B) and modeling_grok (`output_multiplier_scale`) on the hub.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor, nn

from sdkernels.engine.hooks import check_hooks

# Names under which configs keep transforms of their logits: logits * value, logits / value, and
# value * tanh(logits / value). A factor on hidden states before a head without bias is the same.
MULTIPLIERS = (
    "logit_scale",
    "lm_head_multiplier",
    "output_multiplier",
    "output_multiplier_scale",
)
DIVISORS = ("logits_scaling", "logits_mup_width_multiplier")
SOFTCAPS = (
    "final_logit_softcapping",
    "final_logit_softcap",
    "logits_soft_cap",
    "output_logit_soft_cap",
)

# Where a model type gives one of these names another meaning.
MULTIPLIES_INSTEAD = {("hyperclovax", "logits_scaling")}
UNUSED = {("mpt", "logit_scale")}

_HEAD_BEFORE = "a prediction head transforms the hidden states before its output projection"
_DRAFT = "it is a draft model, whose logits are not those of its output projection alone"
REFUSED = {
    "chameleon": "it bans image tokens after its output projection",
    "clvp": "it normalises hidden states before its output projection",
    "clvp_decoder": "it normalises hidden states before its output projection",
    "electra": _HEAD_BEFORE,
    "gemma4_assistant": _DRAFT,
    "gemma4_unified_assistant": _DRAFT,
    "modernbert-decoder": _HEAD_BEFORE,
    "muse_glimmer_assistant": _DRAFT,
    "prophetnet": "its logits come from n-gram streams, not from its last hidden states",
}


class ModelHead(NamedTuple):
    """Weight `[V, D]`, bias `[V]` and the transforms of an `LMHead`."""

    weight: Tensor
    bias: Tensor | None
    scale: float
    softcap: float | None
    valid_vocab: int | None


def read_model(model: Any) -> ModelHead:
    """The output projection of a transformers causal language model, with the transforms that its
    config names; errors as in `LMHead.from_model`.
    """
    inner = _unwrapped(model)
    module = inner.get_output_embeddings()
    if module is None:
        raise TypeError(_no_head(inner))
    config = inner.config
    for name in (getattr(config, "model_type", None), getattr(_text(config), "model_type", None)):
        if name in REFUSED:
            raise ValueError(f"model: LMHead can't stand for {name}: {REFUSED[name]}")
    if getattr(config, "is_encoder_decoder", False):
        raise ValueError(
            f"model: {type(inner).__name__} is an encoder-decoder; these add a logits bias or "
            "scale hidden states outside their config. Pass LMHead(weight, bias, scale=...) "
            "yourself"
        )
    _check_position(inner, module)
    active = _active(module)
    if active is not module:
        check_hooks(module)
    weight, bias = linear_parts(active)
    text = _text(config)
    scale, softcap = _transforms_of(text, has_bias=bias is not None)
    return ModelHead(weight, bias, scale, softcap, getattr(text, "unpadded_vocab_size", None))


def linear_parts(module: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Weight and bias of a plain linear layer; everything that would compute something else is
    refused.
    """
    kind = type(module).__name__
    if hasattr(module, "lora_A") or hasattr(module, "base_layer"):
        raise TypeError(
            f"head: {kind} carries an adapter (LoRA) on the output projection, which its weight "
            "alone does not show. Leave lm_head out of target_modules, or merge the adapter first "
            "(model.merge_and_unload())"
        )
    weight = getattr(module, "weight", None)
    if not isinstance(weight, Tensor):
        raise TypeError(f"head: {kind} has no weight tensor; pass LMHead(weight, ...) yourself")
    # Subclasses of nn.Linear (quantised, parallel, scaled) may do more than a product with their
    # weight.
    if _own_type(module) is not nn.Linear and isinstance(module, nn.Linear):
        raise TypeError(
            f"head: {kind} is a modified nn.Linear and may compute more than hidden @ weight.T; "
            "pass LMHead(weight, ...) with a plain weight tensor"
        )
    if not isinstance(module, (nn.Linear, nn.Embedding)):
        raise TypeError(
            f"head: expected a plain nn.Linear, got {kind}; pass LMHead(weight, ...) yourself"
        )
    if isinstance(module, nn.Linear):
        check_hooks(module)  # of an embedding they act on the look-up, which is the model's
    bias = getattr(module, "bias", None)
    return weight, bias if isinstance(bias, Tensor) else None


def _own_type(module: nn.Module) -> type:
    """The type of a layer as its author wrote it: FSDP2 gives a module that it shards a class of
    its own, `FSDPModule` before the original one, which computes the same.
    """
    kind, *bases = type(module).__mro__
    return bases[1] if bases[0].__name__ == "FSDPModule" else kind


def _unwrapped(model: Any) -> Any:
    """The transformers model inside PEFT, DDP and their like."""
    inner = model.get_base_model() if hasattr(model, "get_base_model") else model
    while not callable(getattr(inner, "get_output_embeddings", None)):
        if not isinstance(getattr(inner, "module", None), nn.Module):
            raise TypeError(_no_head(inner))
        inner = inner.module
    return inner.get_base_model() if hasattr(inner, "get_base_model") else inner


def _no_head(model: Any) -> str:
    return (
        f"model: {type(model).__name__} has no output embedding (get_output_embeddings() gives "
        "nothing); pass LMHead(weight, ...) yourself"
    )


def _text(config: Any) -> Any:
    return config.get_text_config() if hasattr(config, "get_text_config") else config


def _active(module: Any) -> nn.Module:
    """The layer that PEFT's `modules_to_save` puts to use: its trained copy, or the original."""
    copies = getattr(module, "modules_to_save", None)
    if not isinstance(copies, nn.ModuleDict) or not hasattr(module, "original_module"):
        return module
    active = list(module.active_adapters)
    if module.disable_adapters or not active:
        return module.original_module
    return copies[active[0]]


def _check_position(model: Any, module: nn.Module) -> None:
    """A projection inside a larger head (BERT's, RoBERTa's) does not act on last hidden states."""
    if not isinstance(model, nn.Module) or isinstance(module, nn.Embedding):
        return
    path = next((name for name, found in model.named_modules() if found is module), "")
    parent = model.get_submodule(path.rpartition(".")[0])
    if not hasattr(parent, "get_output_embeddings"):
        raise ValueError(
            f"model: the output projection {path} is part of {type(parent).__name__}, which may "
            "transform the hidden states first; pass LMHead(weight, bias) yourself, and the "
            "hidden states behind that transform"
        )


def _transforms_of(config: Any, *, has_bias: bool) -> tuple[float, float | None]:
    """(scale, softcap) from a model config; refuses names that look like a transform of the logits
    but are not known.
    """
    model_type = getattr(config, "model_type", None)
    scale, softcap = 1.0, None
    # Properties count too (MiniCPM3's logits_scaling), so known names are asked for, not listed.
    for name in (*MULTIPLIERS, *DIVISORS, *SOFTCAPS):
        value = getattr(config, name, None)
        if value is None or (model_type, name) in UNUSED:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise ValueError(f"config.{name}={value!r}: LMHead knows numbers only")
        if name in SOFTCAPS:
            softcap = float(value)
        elif name in MULTIPLIERS or (model_type, name) in MULTIPLIES_INSTEAD:
            scale *= value
        else:
            scale /= value
    base = getattr(config, "dim_model_base", None)
    if base and getattr(config, "logits_scaling", None) is None:
        scale *= base / config.hidden_size
    if has_bias and scale != 1.0 and _scales_hidden(config):
        raise ValueError(
            f"model: {model_type} scales hidden states before an output projection with a bias, "
            "which LMHead (bias before scale) can't express"
        )
    _refuse_unknown(config)
    return scale, softcap


def _scales_hidden(config: Any) -> bool:
    return any(
        getattr(config, name, None) is not None
        for name in ("dim_model_base", "logits_mup_width_multiplier")
    )


def _refuse_unknown(config: Any) -> None:
    known = {*MULTIPLIERS, *DIVISORS, *SOFTCAPS}
    values = config.to_dict() if hasattr(config, "to_dict") else vars(config)
    for name, value in values.items():
        number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if number and value not in (0, 1) and name not in known and _looks_like_transform(name):
            raise ValueError(
                f"config.{name}={value!r} looks like a transform of the logits that LMHead does "
                "not know; if it is not one, pass LMHead(weight, bias, scale=..., softcap=...) "
                "yourself"
            )


def _looks_like_transform(name: str) -> bool:
    about_logits = any(word in name for word in ("logit", "lm_head", "mup_"))
    elsewhere = any(word in name for word in ("router", "attn", "attention", "gate", "embed"))
    transforms = any(word in name for word in ("cap", "scal", "mult", "temp", "alpha"))
    return about_logits and not elsewhere and transforms
