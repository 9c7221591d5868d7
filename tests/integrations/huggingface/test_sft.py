"""`FusedSFTTrainer` trains as transformers' Trainer does, and logs what it should."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.tiny_models import calls_of, tiny_causal_lm
from transformers import Trainer, TrainerCallback, TrainingArguments

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


def means(model: Any, data: list[dict[str, torch.Tensor]]) -> list[Any]:
    """Log-prob and entropy over all labels, from logits."""
    logp_sum, entropy_sum, labels = 0.0, 0.0, 0
    for row in data:
        with torch.no_grad():
            logits = model(input_ids=row["input_ids"][None]).logits[0, :-1].log_softmax(-1)
        target = row["labels"][1:]
        kept = target != -100
        logp_sum += float(logits[kept].gather(-1, target[kept][:, None]).sum())
        entropy_sum -= float((logits.exp() * logits).sum(-1)[kept].sum())
        labels += int(kept.sum())
    return [pytest.approx(logp_sum / labels), pytest.approx(entropy_sum / labels)]


@pytest.mark.parametrize("prefix", ["eval", "test", "train"])
def test_logprob_and_entropy_are_means_over_labels(tmp_path: Path, prefix: str) -> None:
    trainer = FusedSFTTrainer(model=tiny_causal_lm(), args=arguments(tmp_path))
    found = trainer.evaluate(rows(6), metric_key_prefix=prefix)
    line = trainer.state.log_history[-1]
    assert [line[f"{prefix}_logprob"], line[f"{prefix}_entropy"]] == means(trainer.model, rows(6))
    assert found[f"{prefix}_logprob"] == line[f"{prefix}_logprob"]
    assert found[f"{prefix}_loss"] > 0
    assert "logprob" not in line


def test_every_set_of_an_evaluation_has_its_own_means(tmp_path: Path) -> None:
    sets = {"a": rows(6), "b": rows(16)[6:]}
    trainer = FusedSFTTrainer(model=tiny_causal_lm(), args=arguments(tmp_path), eval_dataset=sets)
    trainer.evaluate()
    for line, (name, data) in zip(trainer.state.log_history, sets.items(), strict=True):
        found = [line[f"eval_{name}_logprob"], line[f"eval_{name}_entropy"]]
        assert found == means(trainer.model, data)


def test_evaluations_leave_the_means_of_training_alone(tmp_path: Path) -> None:
    class Evaluating(TrainerCallback):
        def on_step_begin(self, *_: Any, **__: Any) -> None:
            trainer.evaluate(metric_key_prefix="test")
            trainer.evaluate(metric_key_prefix="train")
            trainer.predict(rows(2))

    changes = {"logging_steps": 2}
    expected = train(FusedSFTTrainer, tmp_path, changes=changes).state.log_history
    trainer = FusedSFTTrainer(
        model=tiny_causal_lm(),
        args=arguments(tmp_path, **changes),
        train_dataset=rows(),
        eval_dataset=rows(6),
        callbacks=[Evaluating()],
    )
    trainer.train()
    lines = [line for line in trainer.state.log_history if "logprob" in line]
    # Of steps 1 and 2, and of step 3 in the line at the end.
    assert len(lines) == len(expected) == 2
    for line, other in zip(lines, expected, strict=True):
        assert [line["logprob"], line["entropy"]] == [other["logprob"], other["entropy"]]


def test_every_line_has_the_means_of_its_own_steps(tmp_path: Path) -> None:
    trainer = train(FusedSFTTrainer, tmp_path)
    lines = [line for line in trainer.state.log_history if "loss" in line]
    assert len({line["logprob"] for line in lines}) == len(lines) == 3
    for line in lines:
        assert line["loss"] == pytest.approx(-line["logprob"], rel=1e-4)


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
    assert found.metrics["test_logprob"] == means(trainer.model, rows(16))[0]
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


def loss_of(trainer: Any, labels: torch.Tensor, **more: Any) -> torch.Tensor:
    ids = torch.stack([row["input_ids"] for row in rows(2)])
    return trainer.compute_loss(trainer.model, {"input_ids": ids, "labels": labels}, **more)


def test_a_loss_outside_an_evaluation_does_not_count_in_it(tmp_path: Path) -> None:
    trainer = FusedSFTTrainer(
        model=tiny_causal_lm().eval(), args=arguments(tmp_path), eval_dataset=rows(6)
    )
    loss_of(trainer, torch.stack([row["labels"] for row in rows(2)]))
    assert trainer.evaluate()["eval_logprob"] == means(trainer.model, rows(6))[0]


def test_without_a_count_the_loss_is_the_mean(tmp_path: Path) -> None:
    trainer = FusedSFTTrainer(model=tiny_causal_lm(), args=arguments(tmp_path))
    labels = torch.stack([row["labels"] for row in rows(2)])
    count = int((labels[:, 1:] != -100).sum())
    torch.testing.assert_close(
        loss_of(trainer, labels), loss_of(trainer, labels, num_items_in_batch=count)
    )
    assert loss_of(trainer, torch.full_like(labels, -100)) == 0


@pytest.mark.parametrize("across", [True, False])
def test_the_loss_of_one_of_two_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, across: bool
) -> None:
    """DDP averages gradients; the count is of all processes where tokens are averaged."""
    changes = {"average_tokens_across_devices": across}
    trainer = FusedSFTTrainer(model=tiny_causal_lm(), args=arguments(tmp_path, **changes))
    # transformers switches it off again in a single process.
    trainer.args.average_tokens_across_devices = across
    labels = torch.stack([row["labels"] for row in rows(2)])
    alone = loss_of(trainer, labels, num_items_in_batch=40)
    monkeypatch.setattr(type(trainer.accelerator), "num_processes", property(lambda _: 2))
    found = loss_of(trainer, labels, num_items_in_batch=40)
    torch.testing.assert_close(found, alone * (2 if across else 1))


def test_logged_means_are_over_the_labels_of_all_processes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer = FusedSFTTrainer(
        model=tiny_causal_lm(), args=arguments(tmp_path), eval_dataset=rows(6)
    )
    other = torch.tensor([-1000.0, 500.0, 100.0])
    sums: list[torch.Tensor] = []

    def reduce(mine: torch.Tensor) -> torch.Tensor:
        sums.append(mine)
        return mine + other

    monkeypatch.setattr(trainer.accelerator, "reduce", reduce)
    trainer.evaluate()
    logp, entropy, labels = (sums[0] + other).tolist()
    line = trainer.state.log_history[-1]
    assert line["eval_logprob"] == pytest.approx(logp / labels)
    assert line["eval_entropy"] == pytest.approx(entropy / labels)


def test_a_model_that_says_it_takes_no_count_is_trained_the_same(tmp_path: Path) -> None:
    expected = train(FusedSFTTrainer, tmp_path)
    model = tiny_causal_lm()
    model.accepts_loss_kwargs = False
    assert losses(train(FusedSFTTrainer, tmp_path, model=model)) == losses(expected)


def test_metrics_of_a_bfloat16_model_have_a_loss_in_float32(tmp_path: Path) -> None:
    trainer = FusedSFTTrainer(
        model=tiny_causal_lm().bfloat16(),
        args=arguments(tmp_path),
        eval_dataset=rows(6),
        compute_metrics=lambda _: {"seen": 1.0},
    )
    found = trainer.evaluate()["eval_loss"]
    batch = {name: torch.stack([row[name] for row in rows(6)]) for name in rows(1)[0]}
    labels = batch.pop("labels")
    with torch.no_grad():
        logits = trainer.model(**batch).logits[:, :-1].float()
    expected = torch.nn.functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten())
    assert found == pytest.approx(expected.item(), rel=1e-4)
