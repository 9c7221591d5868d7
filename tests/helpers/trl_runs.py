"""Small runs of TRL's trainers, recorded step by step."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from helpers.tiny_models import byte_tokenizer, tiny_causal_lm
from transformers import TrainerCallback

from sdkernels.integrations.trl import use_engine

WORDS = ["one two", "apples, pears and 3 plums", "why", "count to five please", "2+2?", "red blue"]


@dataclass
class Record:
    """Losses of micro-batches, gradients of steps, and what was logged."""

    losses: list[float] = field(default_factory=list)
    gradients: list[dict[str, torch.Tensor]] = field(default_factory=list)
    logs: list[dict[str, float]] = field(default_factory=list)


class _Gradients(TrainerCallback):
    def __init__(self, record: Record) -> None:
        self.record = record

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        self.record.gradients.append(
            {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}
        )


def train(trainer: Any) -> Record:
    """Run a trainer to its end; seeds are those of its arguments."""
    record = Record()
    trainer.add_callback(_Gradients(record))
    step = trainer.training_step

    def recorded(*args: Any, **kwargs: Any) -> Any:
        loss = step(*args, **kwargs)
        record.losses.append(float(loss))
        return loss

    trainer.training_step = recorded
    random.seed(7)
    torch.manual_seed(7)
    trainer.train()
    timed = ("time", "runtime", "per_second", "flos", "tflops", "mfu")
    record.logs = [
        {
            k: v
            for k, v in line.items()
            if isinstance(v, float) and not any(word in k for word in timed)
        }
        for line in trainer.state.log_history
    ]
    return record


def compare(make: Callable[[], Any], *, rtol: float = 1e-8, atol: float = 1e-10) -> Record:
    """Train what `make` gives as it is and with the engine; losses, gradients and logs agree."""
    before = train(make())
    trainer = make()
    use_engine(trainer)
    after = train(trainer)
    assert len(before.losses) == len(after.losses) > 2
    close = {"rtol": rtol, "atol": atol}
    torch.testing.assert_close(after.losses, before.losses, **close)
    assert len(before.gradients) == len(after.gradients) > 1
    for ours, theirs in zip(after.gradients, before.gradients, strict=True):
        # Unused parameters may have no gradient on one side and zeros on the other.
        for name in ours.keys() | theirs.keys():
            zero = torch.zeros(())
            torch.testing.assert_close(
                ours.get(name, zero).expand_as(theirs.get(name, ours.get(name, zero))),
                theirs.get(name, zero).expand_as(ours.get(name, theirs.get(name, zero))),
                msg=lambda text, name=name: f"{name}: {text}",
                **close,
            )
    for ours, theirs in zip(after.logs, before.logs, strict=True):
        assert ours.keys() == theirs.keys()
        torch.testing.assert_close(ours, theirs, rtol=max(rtol, 1e-5), atol=max(atol, 1e-6))
    return after


def arguments(folder: Path, **changes: Any) -> dict[str, Any]:
    """Settings that all trainers share: two steps of two micro-batches."""
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 4,
        "gradient_accumulation_steps": 2,
        "max_steps": 2,
        "learning_rate": 1e-2,
        "max_grad_norm": 0.0,
        "save_strategy": "no",
        "logging_steps": 1,
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 3,
        "bf16": False,
        "gradient_checkpointing": False,
    }
    return settings | changes


def prompts(count: int = 24, **columns: Any) -> Any:
    """A dataset of one-turn prompts of different lengths."""
    from datasets import Dataset

    rows = [
        {"prompt": [{"role": "user", "content": WORDS[i % len(WORDS)]}], **columns}
        for i in range(count)
    ]
    return Dataset.from_list(rows)


def conversations(count: int = 24) -> Any:
    """A dataset of prompts and answers of different lengths."""
    from datasets import Dataset

    rows = [
        {
            "messages": [
                {"role": "user", "content": WORDS[i % len(WORDS)]},
                {"role": "assistant", "content": WORDS[(i + 2) % len(WORDS)] * (1 + i % 2)},
            ]
        }
        for i in range(count)
    ]
    return Dataset.from_list(rows)


def reward_even(completion_ids: list[list[int]], **_: Any) -> list[float]:
    """1 for completions whose first id is even: about half of random ones."""
    return [float(ids[0] % 2 == 0) for ids in completion_ids]


def saved(model: Any, folder: Path) -> Any:
    """The model, with a copy on disk from which trainers load their teacher."""
    model.save_pretrained(folder / "model")
    model.config._name_or_path = str(folder / "model")
    return model


def sdpo(folder: Path, model: Any = None, peft_config: Any = None, **changes: Any) -> Any:
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    settings = {"num_generations": 4, "max_completion_length": 6}
    return SDPOTrainer(
        model=saved(model or tiny_causal_lm(), folder),
        reward_funcs=reward_even,
        args=SDPOConfig(**arguments(folder, **(settings | changes))),
        train_dataset=prompts(),
        processing_class=byte_tokenizer(),
        peft_config=peft_config,
    )


def sdft(folder: Path, model: Any = None, **changes: Any) -> Any:
    from trl.experimental.sdft import SDFTConfig, SDFTTrainer

    settings = {"num_generations": 4, "max_completion_length": 6}
    return SDFTTrainer(
        model=saved(model or tiny_causal_lm(), folder),
        args=SDFTConfig(**arguments(folder, **(settings | changes))),
        train_dataset=prompts(privileged_context="The answer is 4."),
        processing_class=byte_tokenizer(),
    )


def gkd(folder: Path, model: Any = None, teacher: Any = None, **changes: Any) -> Any:
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    settings = {"max_new_tokens": 6, "lmbda": 0.5}
    return GKDTrainer(
        model=model or tiny_causal_lm(),
        teacher_model=teacher or tiny_causal_lm(seed=1, hidden_size=16, intermediate_size=32),
        args=GKDConfig(**arguments(folder, **(settings | changes))),
        train_dataset=conversations(),
        processing_class=byte_tokenizer(),
    )


def gold(folder: Path, model: Any = None, teacher: Any = None, **changes: Any) -> Any:
    from trl.experimental.gold import GOLDConfig, GOLDTrainer

    settings = {"max_completion_length": 6, "lmbda": 0.5, "use_uld_loss": False}
    return GOLDTrainer(
        model=model or tiny_causal_lm(),
        teacher_model=teacher or tiny_causal_lm(seed=1, hidden_size=16, intermediate_size=32),
        args=GOLDConfig(**arguments(folder, **(settings | changes))),
        train_dataset=conversations(),
        processing_class=byte_tokenizer(),
    )


def distillation(folder: Path, model: Any = None, teacher: Any = None, **changes: Any) -> Any:
    from trl import DistillationConfig, DistillationTrainer

    settings = {"max_completion_length": 6}
    return DistillationTrainer(
        model=model or tiny_causal_lm(),
        teacher_model=teacher or tiny_causal_lm(seed=1, hidden_size=16, intermediate_size=32),
        args=DistillationConfig(**arguments(folder, **(settings | changes))),
        train_dataset=prompts(),
        processing_class=byte_tokenizer(),
    )


def grpo(folder: Path, model: Any = None, **changes: Any) -> Any:
    from trl import GRPOConfig, GRPOTrainer

    settings = {"num_generations": 4, "max_completion_length": 6}
    return GRPOTrainer(
        model=model or tiny_causal_lm(),
        reward_funcs=reward_even,
        args=GRPOConfig(**arguments(folder, **(settings | changes))),
        train_dataset=prompts(),
        processing_class=byte_tokenizer(),
    )
