"""SDPO and SDFT with the engine train as they do without it, under all of their loss options."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import trl_runs as runs
from helpers.tiny_models import tiny_causal_lm
from peft import LoraConfig

from sdkernels.integrations.trl import use_engine

FULL = {"distillation_mode": "full_logits"}
TOPK = {"distillation_mode": "topk_logits", "distillation_topk": 8}
# Each batch of rollouts serves two rounds of steps, so that importance weights are not 1.
OFF_POLICY = {"num_iterations": 2, "learning_rate": 5e-2}


def lora(**settings: Any) -> LoraConfig:
    return LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM", **settings)


@pytest.mark.parametrize(
    "options",
    [
        FULL | OFF_POLICY | {"distillation_alpha": 0.3, "temperature": 0.7},
        FULL | OFF_POLICY | {"distillation_is_clip": None, "mask_truncated_completions": True},
        TOPK | OFF_POLICY | {"distillation_add_tail": True, "distillation_alpha": 0.5},
        TOPK | {"distillation_alpha": 0.0},
        OFF_POLICY | {"distillation_is_clip": 1.01, "max_steps": 4},
        FULL | OFF_POLICY | {"distillation_weight": 0.6, "loss_type": "bnpo"},
        OFF_POLICY
        | {
            "distillation_weight": 0.0,
            "importance_sampling_level": "sequence",
            "loss_type": "grpo",
        },
        FULL | {"teacher_model_kind": "live", "distillation_weight": 0.5},
    ],
    ids=lambda options: " ".join(
        f"{k.removeprefix('distillation_')}={v}" for k, v in options.items()
    ),
)
def test_sdpo(tmp_path: Path, options: dict[str, Any]) -> None:
    runs.compare(lambda: runs.sdpo(tmp_path, **options))


@pytest.mark.parametrize("family", ["Gemma3", "Cohere"])
def test_sdpo_on_models_that_transform_their_logits(tmp_path: Path, family: str) -> None:
    runs.compare(lambda: runs.sdpo(tmp_path, tiny_causal_lm(family), **FULL))


@pytest.mark.parametrize("kind", ["base", "ema"])
def test_sdpo_with_a_teacher_inside_the_adapter(tmp_path: Path, kind: str) -> None:
    runs.compare(lambda: runs.sdpo(tmp_path, peft_config=lora(), teacher_model_kind=kind, **FULL))


def test_sdpo_with_a_trained_copy_of_the_head(tmp_path: Path) -> None:
    """The teacher, adapters off, uses the original head."""
    record = runs.compare(
        lambda: runs.sdpo(
            tmp_path,
            peft_config=lora(modules_to_save=["lm_head"]),
            teacher_model_kind="base",
            **FULL,
        )
    )
    assert any("lm_head.modules_to_save" in name for name in record.gradients[0])


def test_sdpo_in_bfloat16_autocast(tmp_path: Path) -> None:
    def make() -> Any:
        return runs.sdpo(tmp_path, tiny_causal_lm().float(), bf16=True, **FULL)

    runs.compare(make, rtol=3e-2, atol=3e-3)


@pytest.mark.parametrize(
    "options",
    [
        {"num_loss_tokens_to_skip": 2},
        {"distillation_mode": "sampled_token", "distillation_alpha": 1.0} | OFF_POLICY,
        {"generate_from_teacher": True, "teacher_model_kind": "ema"},
    ],
    ids=lambda options: " ".join(f"{k}={v}" for k, v in options.items()),
)
def test_sdft(tmp_path: Path, options: dict[str, Any]) -> None:
    runs.compare(lambda: runs.sdft(tmp_path, **options))


def test_topk_without_a_number_is_refused(tmp_path: Path) -> None:
    trainer = runs.sdpo(tmp_path, **(TOPK | {"distillation_topk": None}))
    with pytest.raises(ValueError, match="distillation_topk=None"):
        use_engine(trainer)


def test_what_a_trainer_may_become_later_is_refused(tmp_path: Path) -> None:
    trainer = runs.sdpo(tmp_path, **FULL)
    trainer.use_teacher_server = True
    trainer.args.distillation_mode = "everything"
    with pytest.raises(ValueError, match=r"use_teacher_server=True.*'everything'.*'full_logits'"):
        use_engine(trainer)


def test_the_sampled_token_has_one_direction(tmp_path: Path) -> None:
    """TRL's config checks it when it is made, and its loss again; the engine's loss does not."""
    trainer = runs.sdpo(tmp_path)
    trainer.args.distillation_alpha = 0.5
    with pytest.raises(ValueError, match=r"distillation_alpha=0.5.*set it to 1.0"):
        use_engine(trainer)


def test_the_logged_divergence_is_that_of_all_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    logged: list[list[float]] = []
    for other_rank in (0.0, 3.0):
        trainer = runs.sdft(tmp_path, max_steps=1, gradient_accumulation_steps=1)
        use_engine(trainer)
        gather = trainer.accelerator.gather

        def two_ranks(x: Any, gather: Any = gather, more: float = other_rank) -> Any:
            # The mean is the one number without a dimension.
            alone = isinstance(x, torch.Tensor) and x.dim() == 0 and x.is_floating_point()
            return torch.stack([x, x + more]) if alone else gather(x)

        monkeypatch.setattr(trainer.accelerator, "gather", two_ranks)
        logged.append([])
        monkeypatch.setattr(
            trainer, "_log_self_distillation_metric", lambda _, value: logged[-1].append(value)
        )
        trainer.train()
    assert logged[1] == pytest.approx([value + 1.5 for value in logged[0]])
