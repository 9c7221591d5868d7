"""A tiny random Llama with a byte-level tokenizer and a ChatML template, and small addition
problems.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_models import byte_tokenizer

from sdkernels.contexts import Example


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def tiny_model(tokenizer: Any, *, seed: int = 0, **changes: Any) -> Any:
    """A random Llama with hidden size 32 and two layers, float32."""
    from transformers import LlamaConfig, LlamaForCausalLM

    settings: dict[str, Any] = {
        "vocab_size": len(tokenizer),
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "tie_word_embeddings": True,
        "initializer_range": 0.2,
        "pad_token_id": tokenizer.pad_token_id,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
    }
    torch.manual_seed(seed)
    return LlamaForCausalLM(LlamaConfig(**(settings | changes)))


def problems(count: int, *, uneven: bool = True) -> list[Example]:
    """Additions with answer, solution and hint, of different lengths."""
    examples = []
    for i in range(count):
        a, b = 1 + i, 2 + 3 * i
        extra = " please" * (i % 3) if uneven else ""
        examples.append(
            Example(
                id=f"add-{i}",
                prompt=[{"role": "user", "content": f"{a}+{b}?{extra}"}],
                answer=str(a + b),
                solution=f"<think>carry {a}</think>{a} and {b} make {a + b}." + " Done." * (i % 4),
                hint=f"count {b} on from {a}",
                task="number",
                metadata={"row": f"row {i + 1}"},
            )
        )
    return examples


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    return byte_tokenizer()


@pytest.fixture
def make_model(tokenizer: Any) -> Callable[..., Any]:
    """Builds a fresh tiny model: `make_model(seed=1, hidden_size=16)`."""
    return lambda **settings: tiny_model(tokenizer, **settings)


@pytest.fixture
def make_problems() -> Callable[..., list[Example]]:
    return problems


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model as a folder that `load_model` opens."""
    folder = tmp_path_factory.mktemp("tiny-model")
    tokenizer = byte_tokenizer()
    tiny_model(tokenizer).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def make_config(tmp_path: Path) -> Callable[..., Any]:
    """Settings of a run of a few tiny steps, with changes."""

    def make(**changes: Any) -> Any:
        from sdkernels.train.config import SelfDistillConfig

        settings: dict[str, Any] = {
            "output_dir": str(tmp_path / "run"),
            "per_device_train_batch_size": 2,
            "num_generations": 2,
            "max_completion_length": 8,
            "max_steps": 2,
            "learning_rate": 1e-2,
            "save_strategy": "no",
            "use_cpu": True,
            "disable_tqdm": True,
            "dump_tokens": 0,
            "seed": 7,
        }
        return SelfDistillConfig(**(settings | changes))

    return make


@pytest.fixture
def make_trainer(
    tokenizer: Any,
    make_model: Callable[..., Any],
    make_config: Callable[..., Any],
    make_problems: Callable[..., list[Example]],
) -> Callable[..., Any]:
    """Builds a trainer of a tiny model: `make_trainer(recipe="sdft", rollout=...)`."""
    from sdkernels.train.trainer import SelfDistillTrainer

    def make(*, model: Any = None, examples: list[Example] | None = None, **changes: Any) -> Any:
        names = ("teacher_model", "critic", "rollout", "eval_dataset")
        parts = {name: changes.pop(name) for name in names if name in changes}
        return SelfDistillTrainer(
            model if model is not None else make_model(),
            make_config(**changes),
            make_problems(8) if examples is None else examples,
            tokenizer,
            **parts,
        )

    return make
