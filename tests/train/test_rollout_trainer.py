"""Several optimiser steps on one batch of rollouts: what is trained on, and with which ratios."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from sdkernels.train.rollout import Sample
from sdkernels.train.trainer import SelfDistillTrainer
from sdkernels.train.verify import Verdict


class FixedRollout:
    """Responses that follow from the prompt; notes how many prompts came at once."""

    def __init__(self, *, logprob: float | None = None) -> None:
        self.logprob = logprob
        self.calls: list[int] = []

    def generate(self, prompts_ids, num_generations, sampling, *, seed):
        self.calls.append(len(prompts_ids))
        return [[self._sample(ids, i) for i in range(num_generations)] for ids in prompts_ids]

    def _sample(self, prompt: list[int], index: int) -> Sample:
        length = 3 + (sum(prompt) + index) % 6
        ids = [3 + (7 * sum(prompt) + 11 * index + 5 * j) % 250 for j in range(length)]
        logprobs = None if self.logprob is None else [self.logprob] * length
        return Sample(ids, "x" * length, True, logprobs)


def by_length(text: str, example: Any) -> Verdict:
    right = len(text) % 2 == 0
    return Verdict(right, float(right), None, "feedback")


GRPO = {
    "recipe": "grpo",
    "num_generations": 3,
    "optim": "sgd",
    "learning_rate": 0.3,
    "max_grad_norm": 0.0,
    "max_steps": 4,
}


@pytest.fixture
def make_trainer(tokenizer, make_model, make_config, make_problems):
    def make(*, rollout: Any = None, examples: Any = None, **changes: Any) -> SelfDistillTrainer:
        trainer = SelfDistillTrainer(
            make_model(),
            make_config(**changes),
            make_problems(8) if examples is None else examples,
            tokenizer,
            rollout=rollout,
        )
        trainer.builder.verifier = by_length
        return trainer

    return make


def weights(trainer: SelfDistillTrainer) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in trainer.model.named_parameters()}


def test_prompts_of_several_steps_are_rolled_out_at_once(make_trainer):
    rollout = FixedRollout()
    settings = {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 1}
    trainer = make_trainer(rollout=rollout, **GRPO | settings, steps_per_generation=6)
    trainer.args.max_steps = 5
    trainer.train()
    # 8 prompts an epoch: three steps on 6 of them, one on the last 2, then the next epoch.
    assert rollout.calls == [6, 2, 6]
    drift = [line["policy_drift"] for line in trainer.metrics_log.read()]
    fresh = [abs(value) < 1e-6 for value in drift]
    assert fresh == [True, False, False, True, True]


def test_every_prompt_comes_num_iterations_times_an_epoch(make_trainer):
    rollout = FixedRollout()
    settings = GRPO | {"max_steps": -1, "num_train_epochs": 2, "num_iterations": 3}
    trainer = make_trainer(rollout=rollout, **settings, steps_per_generation=2)
    seen: list[list[str]] = []
    weigh = trainer.builder.weigh

    def noted(rows, *rest):
        seen.append([row.example.id for row in rows[:: trainer.args.num_generations]])
        weigh(rows, *rest)

    trainer.builder.weigh = noted
    trainer.train()
    assert trainer.state.global_step == 2 * 3 * 4
    assert rollout.calls == [4, 4, 4, 4]
    assert seen[:6] == seen[:2] * 3
    first_epoch = [name for ids in seen[:12] for name in ids]
    assert sorted(first_epoch) == sorted(3 * [f"add-{i}" for i in range(8)])
    assert seen[:12] != seen[12:]


def test_trajectory_is_that_of_plain_ppo(make_trainer, make_model):
    """Against a loop over materialised logits: clipped ratios to the weights that sampled."""
    settings = GRPO | {"num_iterations": 2, "steps_per_generation": 2, "temperature": 1.2}
    trainer = make_trainer(rollout=FixedRollout(), **settings)
    batches: list[list[Any]] = []
    weigh = trainer.builder.weigh

    def noted(rows, *rest):
        weigh(rows, *rest)
        batches.append([(r.prompt_ids, r.response_ids, r.advantage, r.weights[0]) for r in rows])

    trainer.builder.weigh = noted
    trainer.train()

    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=settings["learning_rate"])

    def logps(prompt, response):
        logits = model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
        table = (logits / settings["temperature"]).log_softmax(-1)
        return table.gather(-1, torch.tensor(response)[:, None])[:, 0]

    with torch.no_grad():
        old = {str(row[:2]): logps(*row[:2]) for rows in batches for row in rows}
    clipped = []
    for rows in batches:
        loss, beyond, count = torch.zeros(()), 0, 0
        for prompt, response, advantage, weight in rows:
            ratio = (logps(prompt, response) - old[str((prompt, response))]).exp()
            terms = -torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.28) * advantage)
            if advantage < 0:
                terms = torch.minimum(terms, torch.tensor(-3.0 * advantage))
            loss = loss + weight * terms.sum()
            beyond += int((ratio < 0.8).sum())
            count += len(response)
        clipped.append(beyond / count)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    lines = trainer.metrics_log.read()
    assert [line["clip_low_share"] for line in lines] == pytest.approx(clipped, abs=1e-9)
    assert clipped[0] == 0
    assert min(clipped[1:]) > 0  # so the clip is tried
    assert lines[0]["policy_drift"] == pytest.approx(0, abs=1e-6)
    ours = weights(trainer)
    for name, value in model.named_parameters():
        torch.testing.assert_close(ours[name], value.detach(), rtol=0, atol=2e-6)


def test_the_default_and_its_spelled_out_form_are_one(make_trainer, tmp_path):
    settings = {"recipe": "dasd", "gradient_accumulation_steps": 2, "max_steps": 3}
    trainers = []
    for name, own in (("a", {}), ("b", {"steps_per_generation": 2, "num_iterations": 1})):
        trainer = make_trainer(**settings, **own, output_dir=str(tmp_path / name))
        trainer.train()
        trainers.append(trainer)
    ours, theirs = map(weights, trainers)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert trainers[0].metrics_log.read()[0]["policy_drift"] is None


@pytest.mark.parametrize("scope", ["sequence", "batch"])
def test_gates_use_the_entropies_of_the_policy_that_sampled(make_trainer, monkeypatch, scope):
    trainer = make_trainer(
        rollout=FixedRollout(),
        recipe="dasd",
        gate_args={"scope": scope, "min_tokens": 1},
        num_iterations=2,
        max_steps=2,
        learning_rate=0.05,
    )
    seen = []
    call = type(trainer.step_loss).__call__

    def noted(self, model, batch, thresholds, timers):
        seen.append((thresholds.gate.tau.clone(), self.statistics(model, batch).entropy))
        return call(self, model, batch, thresholds, timers)

    monkeypatch.setattr(type(trainer.step_loss), "__call__", noted)
    trainer.train()
    (tau, entropy), (later_tau, later_entropy) = seen
    assert torch.equal(tau, later_tau)
    assert not torch.allclose(entropy, later_entropy, atol=1e-3)  # the weights did move


@pytest.mark.parametrize("recipe", ["sdpo", "dasd"])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_resumed_in_the_middle_of_a_batch_of_rollouts(make_trainer, tmp_path, recipe, stop):
    """Bit for bit, at every place of a batch that serves four steps."""
    settings = {
        "recipe": recipe,
        "recipe_args": {"is_clip": 1.5} if recipe == "sdpo" else {},
        "num_iterations": 2,
        "steps_per_generation": 2,
        "max_steps": 6,
        "save_strategy": "steps",
        "save_steps": stop,
        "save_total_limit": None,
        "teacher_model_kind": "ema",
        "learning_rate": 3e-3,
    }
    whole = make_trainer(**settings, output_dir=str(tmp_path / "whole"))
    whole.train()
    folder = str(tmp_path / "whole" / f"checkpoint-{stop}")
    resumed = make_trainer(**settings, output_dir=str(tmp_path / "resumed"))
    calls = []
    generate = resumed.builder.backend.generate
    resumed.builder.backend.generate = lambda *args, **rest: (
        calls.append(len(args[0])),
        generate(*args, **rest),
    )[1]
    resumed.train(folder)
    assert calls == [4]  # the second batch only: the first one was in the checkpoint
    ours, theirs = weights(whole), weights(resumed)
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    keys = ("loss", "policy_drift", "reward", "is_clip_share")
    for a, b in zip(whole.metrics_log.read()[stop:], resumed.metrics_log.read(), strict=True):
        assert [a[key] for key in keys] == [b[key] for key in keys]
    assert not list((tmp_path / "resumed").glob("checkpoint-4/rollouts-*"))


def test_log_probs_of_the_sampler_are_the_old_ones(make_trainer):
    trainer = make_trainer(rollout=FixedRollout(logprob=-2.0), **GRPO | {"max_steps": 1})
    trainer.train()
    (line,) = trainer.metrics_log.read()
    assert line["sampler_gap_abs"] > 0.5  # the model is not that sure
    assert line["policy_drift"] == pytest.approx(line["sampler_gap_abs"], rel=0.2)
    assert line["clip_low_share"] > 0.5
    assert math.isfinite(line["loss"])


@pytest.mark.parametrize("recipe", ["dasd", "sdpo", "grpo"])
def test_packed_sequences_train_like_padded_ones(make_trainer, tmp_path, recipe):
    trainers = []
    for packed in (False, True):
        trainer = make_trainer(
            rollout=FixedRollout(),
            **GRPO | {"recipe": recipe, "learning_rate": 0.1, "max_steps": 3},
            padding_free=packed,
            output_dir=str(tmp_path / str(packed)),
        )
        trainer.train()
        trainers.append(trainer)
    padded, packed = (trainer.metrics_log.read() for trainer in trainers)
    for a, b in zip(padded, packed, strict=True):
        for key in ("loss", "grad_norm", "entropy"):
            assert b[key] == pytest.approx(a[key], rel=2e-4, abs=1e-7), key
        assert (b["padding_share"], a["padding_share"]) == (0, b["padding_share_if_padded"])
        assert 0.02 < a["padding_share"] < 0.6
    ours, theirs = map(weights, trainers)
    for name, value in ours.items():
        torch.testing.assert_close(theirs[name], value, rtol=0, atol=1e-5)
