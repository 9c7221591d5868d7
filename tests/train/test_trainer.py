"""The trainer end to end on a tiny random model: step 0, a plain loss beside it, records."""

from __future__ import annotations

import json
import math

import pytest
import torch
from helpers.tiny_models import byte_tokenizer
from helpers.trainer_runs import FixedRollout, largest_difference, lines, weights

from sdkernels.engine import problem
from sdkernels.train.step_metrics import LISTS, MEANS, SUMS
from sdkernels.train.trainer import SelfDistillTrainer

METRICS_KEYS = "step loss grad_norm learning_rate tokens_per_second peak_memory_bytes seconds"
SECONDS_KEYS = "rollout context student_forward teacher_forward loss backward optimizer"


@pytest.mark.parametrize("kind", ["live", "frozen", "ema", "snapshot"])
@pytest.mark.parametrize("recipe", ["sdft", "sdpo", "opsd", "gkd"])
def test_no_context_gives_exactly_no_gap_no_loss_and_no_gradient(make_trainer, kind, recipe):
    trainer = make_trainer(
        recipe=recipe, context="none", teacher_model_kind=kind, max_steps=1, max_grad_norm=0.0
    )
    before = weights(trainer.model)
    trainer.train()
    (line,) = lines(trainer)
    assert (line["loss"], line["gap"], line["gap_abs"], line["grad_norm"]) == (0.0, 0.0, 0.0, 0.0)
    assert line["kl_teacher_student"] == 0.0
    assert line["num_tokens"] > 0
    assert largest_difference(before, weights(trainer.model)) == 0.0


@pytest.mark.parametrize(
    ("recipe", "context", "args"),
    [
        ("sdpo", "none", None),
        ("sdpo", "reference_solution", None),
        ("dasd", "reference_solution", None),
        ("cepo", "contrastive", {"show": "answer"}),
    ],
)
def test_mixed_precision_multiplies_by_the_heads_in_its_dtype(
    make_trainer, monkeypatch, recipe, context, args
):
    """As the models' own forward does; a product in float32 is many times slower on a GPU."""
    seen, project = set(), problem.project

    def watched(hidden_CD, weight_VD, *given, **more):
        seen.add((hidden_CD.dtype, weight_VD.dtype))
        project(hidden_CD, weight_VD, *given, **more)

    method = {"recipe": recipe, "context": context, "context_args": args}
    trainer = make_trainer(**method, bf16=True, max_steps=1, num_generations=4)
    monkeypatch.setattr(problem, "project", watched)
    monkeypatch.setattr(trainer, "evaluate_examples", lambda *_: None)
    trainer.train()
    assert seen == {(torch.bfloat16, torch.bfloat16)}
    assert {p.dtype for p in trainer.model.parameters()} == {torch.float32}
    (line,) = lines(trainer)
    assert math.isfinite(line["loss"])
    if context == "none" and recipe == "sdpo":
        assert (line["loss"], line["gap"], line["grad_norm"]) == (0.0, 0.0, 0.0)


def test_a_context_gives_a_gap(make_trainer):
    trainer = make_trainer(recipe="sdft", context="reference_solution", max_steps=1)
    trainer.train()
    assert lines(trainer)[0]["gap_abs"] > 1e-3
    assert lines(trainer)[0]["grad_norm"] > 1e-3


def test_fused_trajectory_follows_the_plain_one(make_trainer, make_model, tokenizer, tmp_path):
    """20 steps against a loop that materialises the logits."""
    steps = 20
    settings = {
        "recipe": "sdpo",
        "context": "reference_solution",
        "max_steps": steps,
        "per_device_train_batch_size": 4,
        "max_completion_length": 10,
        "learning_rate": 3e-3,
        "max_grad_norm": 0.0,
        "temperature": 1.3,
    }
    fused_model, plain_model = make_model(), make_model()
    fused = make_trainer(model=fused_model, rollout=FixedRollout(tokenizer), **settings)
    fused.train()
    plain = make_trainer(
        model=plain_model,
        rollout=FixedRollout(tokenizer),
        **settings | {"output_dir": str(tmp_path / "plain")},
    )
    plain.step_loss = PlainLoss(plain)
    plain.train()
    ours, theirs = lines(fused), lines(plain)
    for key in ("loss", "grad_norm"):
        residuals = [a[key] - b[key] for a, b in zip(ours, theirs, strict=True)]
        sizes = [abs(b[key]) for b in theirs]
        relative = [r / s for r, s in zip(residuals, sizes, strict=True)]
        assert max(map(abs, relative)) < 2e-4, key
        assert abs(sum(relative) / steps) < 5e-5, key  # no drift to one side
    assert ours[-1]["loss"] < 0.9 * ours[0]["loss"]
    assert largest_difference(weights(fused_model), weights(plain_model)) < 2e-4


class PlainLoss:
    """JSD over materialised logits of both models, differentiated by autograd."""

    gate = None
    gate_spans_step = False

    def __init__(self, trainer: SelfDistillTrainer) -> None:
        self.trainer = trainer
        self.fused = trainer.step_loss
        self.switches = self.fused.switches

    def __call__(self, model, batch, thresholds, timers):
        _, stats = self.fused(model, batch, thresholds, timers)
        temperature = self.trainer.args.temperature
        with torch.no_grad():
            teacher = self._logits(self.trainer.teacher.model, batch.teacher)
        log_s = (self._logits(model, batch.student) / temperature).log_softmax(-1)
        log_t = (teacher / temperature).log_softmax(-1)
        log_m = torch.logaddexp(log_s, log_t) - math.log(2)
        kl_t = (log_t.exp() * (log_t - log_m)).sum(-1)
        kl_s = (log_s.exp() * (log_s - log_m)).sum(-1)
        return (batch.weight_N * 0.5 * (kl_t + kl_s)).sum(), stats

    @staticmethod
    def _logits(model, side):
        # The trainer runs the loss inside the model's own forward, which is replaced meanwhile.
        forward = type(model).forward
        output = forward(model, input_ids=side.input_ids, attention_mask=side.attention_mask)
        logits = output.logits
        return logits.reshape(-1, logits.shape[-1])[side.index_N]


def test_metrics_line_has_the_agreed_keys(make_trainer):
    trainer = make_trainer(recipe="dasd", max_steps=1, max_completion_length=12, dump_tokens=2)
    trainer.train()
    (line,) = lines(trainer)
    assert set(line) == {*METRICS_KEYS.split(), *MEANS, *SUMS, *LISTS}
    assert set(line["seconds"]) == set(SECONDS_KEYS.split())
    assert all(value > 0 for value in line["seconds"].values())
    assert line["push_share"] is not None
    record = trainer.tokens_log.read()[0]
    lengths = {len(record[key]) for key in ("tokens", "logp", "teacher_logp", "gap", "direction")}
    assert lengths == {len(record["marker"])}
    assert record["gap"][0] == pytest.approx(
        record["teacher_logp"][0] - record["logp"][0], abs=2e-5
    )


def test_what_a_condition_does_not_have_is_null(make_trainer):
    trainer = make_trainer(recipe="grpo", max_steps=1, dump_tokens=1)
    trainer.train()
    (line,) = lines(trainer)
    for key in ("gap", "gap_abs", "teacher_entropy", "kl_teacher_student", "direction"):
        assert line[key] is None, key
    assert line["push_share"] is None
    assert line["signal_share"] is None
    assert line["seconds"]["teacher_forward"] is None
    record = trainer.tokens_log.read()[0]
    assert record["teacher_logp"] is None
    assert record["teacher_prompt_text"] is None
    json.dumps(record, allow_nan=False)


def test_loggers_get_flat_numbers(make_trainer):
    trainer = make_trainer(max_steps=1)
    trainer.train()
    entry = next(entry for entry in trainer.state.log_history if "loss" in entry)
    assert {"loss", "grad_norm", "learning_rate", "entropy", "num_tokens"} <= set(entry)
    assert isinstance(entry["seconds_rollout"], float)
    assert "seconds" not in entry


def test_evaluation_strategy_uses_generated_answers(make_trainer, make_problems):
    trainer = make_trainer(
        max_steps=2, eval_strategy="steps", eval_steps=1, eval_dataset=make_problems(3)
    )
    trainer.train()
    entries = [entry for entry in trainer.state.log_history if "eval_accuracy" in entry]
    assert [entry["step"] for entry in entries] == [1, 2]
    assert all(entry["eval_completion_length"] > 0 for entry in entries)


def test_a_tokenizer_without_a_padding_token(make_model, make_config, make_problems, tmp_path):
    """Padding is masked everywhere: sampling, training and evaluation don't see which id it is."""
    losses = []
    for folder, padding in ((tmp_path / "with", "<|pad|>"), (tmp_path / "without", None)):
        tokenizer = byte_tokenizer()
        tokenizer.pad_token = padding
        config = make_config(
            recipe="sdft", max_steps=1, eval_strategy="steps", eval_steps=1, output_dir=str(folder)
        )
        trainer = SelfDistillTrainer(
            make_model(), config, make_problems(8), tokenizer, eval_dataset=make_problems(2)
        )
        trainer.train()
        losses += [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[0] == losses[1] > 0
