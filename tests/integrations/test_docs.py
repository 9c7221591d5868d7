"""The how-to pages of the integrations run."""

import re
from pathlib import Path

import torch
from helpers import trl_runs as runs
from helpers.tiny_models import byte_tokenizer, tiny_causal_lm
from transformers import TrainingArguments

DOCS = Path(__file__).parents[2] / "docs"


def run_page(name: str, namespace: dict[str, object]) -> dict[str, object]:
    """Execute the Python blocks of a page in order."""
    text = (DOCS / name).read_text(encoding="utf-8")
    found = re.findall(r"^```python\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    assert found
    for block in found:
        exec(compile(block, name, "exec"), namespace)
    return namespace


def test_trl(tmp_path: Path) -> None:
    settings = runs.arguments(tmp_path, max_steps=1, num_generations=4, max_completion_length=4)
    namespace = run_page(
        "trl.md",
        {
            "settings": settings,
            "model": runs.saved(tiny_causal_lm(), tmp_path),
            "reward": runs.reward_even,
            "dataset": runs.prompts(),
            "tokenizer": byte_tokenizer(),
        },
    )
    assert not namespace["undo"].active
    assert namespace["trainer"].state.global_step == 1


def test_liger() -> None:
    hidden = torch.randn(6, 8, requires_grad=True)
    weight = torch.randn(20, 8, requires_grad=True)
    namespace = run_page(
        "liger.md",
        {
            "hidden": hidden,
            "weight": weight,
            "teacher_hidden": torch.randn(6, 4),
            "teacher_weight": torch.randn(20, 4),
            "labels": torch.tensor([1, 2, -100, 4, 5, 6]),
            "ids": torch.tensor([[1, 2, 3, 4, 5, 6]]),
            "mask": torch.ones(1, 6),
            "advantages": torch.tensor([0.5]),
        },
    )
    assert len(namespace["metrics"]) == 1
    assert hidden.grad.isfinite().all()


def test_huggingface(tmp_path: Path) -> None:
    model = tiny_causal_lm().train()
    ids = torch.tensor([[5, 6, 7, 8]])
    row = {"input_ids": ids[0], "labels": ids[0]}
    settings = {"per_device_train_batch_size": 2, "max_steps": 1, "report_to": "none"}
    namespace = run_page(
        "huggingface.md",
        {
            "model": model,
            "input_ids": ids,
            "labels": ids,
            "args": TrainingArguments(str(tmp_path), use_cpu=True, save_strategy="no", **settings),
            "dataset": [row] * 4,
        },
    )
    assert namespace["logp"].shape == ids.shape
    assert "forward" not in vars(model)
    assert namespace["trainer"].state.global_step == 1
