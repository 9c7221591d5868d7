"""`FusedSFTTrainer` trains as transformers' Trainer does, and logs what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_models import calls_of, tiny_causal_lm
from transformers import Trainer, TrainingArguments

import sdkernels as sd
from sdkernels.integrations.huggingface import FusedSFTTrainer


def rows(count: int = 16) -> list[dict[str, torch.Tensor]]:
    gen = torch.Generator().manual_seed(0)
    found = []
    for i in range(count):
        ids = torch.randint(3, 259, (12,), generator=gen)
        labels = ids.clone()
        # Labels of very different number, so that means of means would show.
        labels[: 2 + 3 * (i % 4)] = -100
        found.append({"input_ids": ids, "attention_mask": torch.ones(12).long(), "labels": labels})
    return found


def arguments(folder: Path, **changes: Any) -> TrainingArguments:
    settings: dict[str, Any] = {
        "output_dir": str(folder),
        "per_device_train_batch_size": 2,
        "gradient_accumulation_steps": 2,
        "max_steps": 3,
        "learning_rate": 1e-2,
        "logging_steps": 1,
        "save_strategy": "no",
        "report_to": "none",
        "use_cpu": True,
        "disable_tqdm": True,
    }
    return TrainingArguments(**(settings | changes))


def train(cls: Any, folder: Path, **options: Any) -> Any:
    changes = options.pop("changes", {})
    model = options.pop("model", None) or tiny_causal_lm()
    trainer = cls(
        model=model,
        args=arguments(folder, **changes),
        train_dataset=rows(),
        eval_dataset=rows(6),
        **options,
    )
    trainer.train()
    return trainer


def losses(trainer: Any) -> list[float]:
    return [line["loss"] for line in trainer.state.log_history if "loss" in line]


@pytest.mark.parametrize("changes", [{}, {"bf16": True}, {"max_grad_norm": 0.1}], ids=str)
def test_the_same_training(tmp_path: Path, changes: dict[str, Any]) -> None:
    theirs = train(Trainer, tmp_path, changes=changes, model=tiny_causal_lm().float())
    ours = train(FusedSFTTrainer, tmp_path, changes=changes, model=tiny_causal_lm().float())
    rough = "bf16" in changes
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-2 if rough else 1e-5)
    for mine, other in zip(ours.model.parameters(), theirs.model.parameters(), strict=True):
        if not rough:
            torch.testing.assert_close(mine, other, rtol=1e-3, atol=2e-4)
    assert ours.evaluate()["eval_loss"] == pytest.approx(
        theirs.evaluate()["eval_loss"], rel=1e-2 if rough else 1e-4
    )


def test_logprob_and_entropy_are_means_over_labels(tmp_path: Path) -> None:
    trainer = FusedSFTTrainer(
        model=tiny_causal_lm(), args=arguments(tmp_path), train_dataset=rows(), eval_dataset=rows(6)
    )
    found = trainer.evaluate()
    logp_sum, entropy_sum, labels = 0.0, 0.0, 0
    for row in rows(6):
        logits = trainer.model(input_ids=row["input_ids"][None]).logits[0, :-1].log_softmax(-1)
        target = row["labels"][1:]
        kept = target != -100
        logp_sum += float(logits[kept].gather(-1, target[kept][:, None]).sum())
        entropy_sum -= float((logits.exp() * logits).sum(-1)[kept].sum())
        labels += int(kept.sum())
    history = trainer.state.log_history[-1]
    assert history["eval_logprob"] == pytest.approx(logp_sum / labels)
    assert history["eval_entropy"] == pytest.approx(entropy_sum / labels)
    assert found["eval_loss"] > 0


def test_the_entropy_bonus_raises_entropy(tmp_path: Path) -> None:
    changes = {"max_steps": 6}
    plain = train(FusedSFTTrainer, tmp_path, changes=changes)
    bonus = train(FusedSFTTrainer, tmp_path, changes=changes, entropy_bonus=1.0)
    last = [trainer.state.log_history[-2]["entropy"] for trainer in (plain, bonus)]
    assert last[1] > last[0]
    first = bonus.state.log_history[0]
    assert first["loss"] == pytest.approx(-first["logprob"] - first["entropy"], rel=1e-4)


def test_the_head_is_not_applied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_causal_lm()
    calls = calls_of(model.lm_head, monkeypatch)
    trainer = train(FusedSFTTrainer, tmp_path, model=model)
    trainer.evaluate()
    assert calls == []


def test_metrics_get_logits(tmp_path: Path) -> None:
    shapes = []

    def metrics(prediction: Any) -> dict[str, float]:
        shapes.append(prediction.predictions.shape)
        return {"seen": 1.0}

    trainer = FusedSFTTrainer(
        model=tiny_causal_lm(),
        args=arguments(tmp_path),
        eval_dataset=rows(6),
        compute_metrics=metrics,
    )
    assert trainer.evaluate()["eval_seen"] == 1.0
    assert shapes == [(6, 12, 259)]


@pytest.mark.parametrize("bonus", [0.0, 0.5])
def test_evaluation_with_metrics_has_the_same_loss_and_logs(tmp_path: Path, bonus: float) -> None:
    """Metrics read logits, so that the loss is made of them; it has to be the one trained on."""
    found = []
    for metrics in (None, lambda prediction: {"seen": float(prediction.predictions.shape[0])}):
        trainer = FusedSFTTrainer(
            model=tiny_causal_lm(),
            args=arguments(tmp_path, per_device_eval_batch_size=4),
            eval_dataset=rows(6),
            compute_metrics=metrics,
            entropy_bonus=bonus,
        )
        loss = trainer.evaluate()["eval_loss"]
        line = trainer.state.log_history[-1]
        found.append([loss, line["eval_logprob"], line["eval_entropy"]])
    assert line["eval_seen"] == 6
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[0][0] == pytest.approx(-found[0][1] - bonus * found[0][2], rel=0.1)


def test_predictions_do_not_count_in_the_next_evaluation(tmp_path: Path) -> None:
    trainer = FusedSFTTrainer(
        model=tiny_causal_lm(), args=arguments(tmp_path), eval_dataset=rows(6)
    )
    trainer.evaluate()
    first = trainer.state.log_history[-1]["eval_logprob"]
    found = trainer.predict(rows(16))
    assert found.predictions.shape == (16, 12, 259)
    trainer.evaluate()
    assert trainer.state.log_history[-1]["eval_logprob"] == first


def test_a_patched_model_in_transformers_trainer(tmp_path: Path) -> None:
    theirs = train(Trainer, tmp_path)
    model = tiny_causal_lm()
    sd.patch(model)
    ours = train(Trainer, tmp_path, model=model)
    assert losses(ours) == pytest.approx(losses(theirs), rel=1e-5)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"changes": {"label_smoothing_factor": 0.1}}, "label_smoothing_factor=0.1"),
        ({"compute_loss_func": lambda *_, **__: 0}, "compute_loss_func"),
    ],
)
def test_what_is_refused(tmp_path: Path, options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        train(FusedSFTTrainer, tmp_path, **options)


def test_prompt_learning_is_refused(tmp_path: Path) -> None:
    from peft import PromptTuningConfig, get_peft_model

    model = get_peft_model(
        tiny_causal_lm(), PromptTuningConfig(num_virtual_tokens=2, task_type="CAUSAL_LM")
    )
    with pytest.raises(ValueError, match="prompt learning"):
        train(FusedSFTTrainer, tmp_path, model=model)


def test_a_loss_that_would_lose_a_term_is_refused(tmp_path: Path) -> None:
    experts, own = tiny_causal_lm(), tiny_causal_lm()
    experts.config.output_router_logits = True
    own.loss_function = torch.nn.functional.cross_entropy
    for model, said in ((experts, "output_router_logits=True"), (own, "loss_function")):
        with pytest.raises(ValueError, match=said):
            train(FusedSFTTrainer, tmp_path, model=model)


def test_evaluation_counts_labels_as_trainer_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On several processes the count is that of all of them, as it is while training."""
    found = []
    for cls in (Trainer, FusedSFTTrainer):
        monkeypatch.setattr(cls, "_get_num_items_in_batch", lambda *_: torch.tensor(50))
        for metrics in (None, lambda _: {"seen": 1.0}):
            trainer = cls(
                model=tiny_causal_lm(),
                args=arguments(tmp_path),
                eval_dataset=rows(6),
                compute_metrics=metrics,
            )
            found.append(trainer.evaluate()["eval_loss"])
    assert found[1:] == pytest.approx(found[:1] * 3, rel=1e-5)


def test_a_step_without_a_label_leaves_the_weights_finite(tmp_path: Path) -> None:
    blank = [row | {"labels": torch.full((12,), -100)} for row in rows(12)]
    trainer = FusedSFTTrainer(
        model=tiny_causal_lm(), args=arguments(tmp_path), train_dataset=blank, eval_dataset=blank
    )
    trainer.train()
    assert losses(trainer) == [0.0] * 3
    assert trainer.evaluate()["eval_loss"] == 0.0
    assert all(parameter.isfinite().all() for parameter in trainer.model.parameters())
