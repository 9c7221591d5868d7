"""What recipes need of a whole optimisation step, in trainers with fixed responses and alone."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdkernels.train.method_passes import MethodPasses
from sdkernels.train.rollout import Sample
from sdkernels.train.teacher_passes import TeacherPasses
from sdkernels.train.trainer import SelfDistillTrainer
from sdkernels.train.verify import Verdict


class FixedRollout:
    """Responses that follow from the prompt."""

    def generate(self, prompts_ids, num_generations, sampling, *, seed):
        return [
            [
                Sample(
                    [3 + (sum(ids) + 11 * i + 5 * j) % 250 for j in range(1 + i)], f"say {i}", False
                )
                for i in range(num_generations)
            ]
            for ids in prompts_ids
        ]


def first_and_third_are_right(text: str, _: Any) -> Verdict:
    right = text in ("say 0", "say 2")
    return Verdict(right, float(right), text[-1], "feedback")


@pytest.fixture
def make_trainer(tokenizer, make_model, make_config, make_problems):
    def make(**changes: Any) -> SelfDistillTrainer:
        settings = {"num_generations": 4, "max_steps": 1, "per_device_train_batch_size": 1}
        trainer = SelfDistillTrainer(
            make_model(seed=changes.pop("model_seed", 0)),
            make_config(**(settings | changes)),
            make_problems(4, uneven=False),
            tokenizer,
            rollout=FixedRollout(),
        )
        trainer.builder.verifier = first_and_third_are_right
        return trainer

    return make


def prepared(trainer: SelfDistillTrainer, monkeypatch) -> list[list[Any]]:
    """The micro-batches of every step, as they are after `prepare`."""
    seen = []
    prepare = trainer.method_passes.prepare

    def noted(batches, step, timers):
        prepare(batches, step, timers)
        seen.append([(batch, batch.strength, batch.batch_mean) for batch in batches])

    monkeypatch.setattr(trainer.method_passes, "prepare", noted)
    trainer.train()
    return seen


def logp_of(model: Any, prompt: list[int], response: list[int]) -> torch.Tensor:
    """Log-probs and entropies of a response, [L, 2], from the model's own logits."""
    with torch.no_grad():
        logits = model(torch.tensor([prompt + response])).logits[0]
    logp = logits.double().log_softmax(-1)[len(prompt) - 1 : -1]
    chosen = logp.gather(-1, torch.tensor(response)[:, None]).squeeze(-1)
    return torch.stack([chosen, -(logp.exp() * logp).sum(-1)], dim=-1)


def test_lam_fades_over_the_steps(make_trainer, monkeypatch):
    trainer = make_trainer(recipe="rlsd", recipe_args={"decay_steps": 2}, max_steps=3)
    strengths = [strength for [(_, strength, _)] in prepared(trainer, monkeypatch)]
    assert strengths == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_srpo_weights_have_mean_1_over_the_whole_step(
    make_trainer, make_model, monkeypatch, aggregation
):
    """In the mean that the loss takes, so that they never change the share of the distillation."""
    trainer = make_trainer(recipe="srpo", gradient_accumulation_steps=3, aggregation=aggregation)
    passes = []
    run = TeacherPasses._run
    monkeypatch.setattr(
        TeacherPasses, "_run", lambda self, side: (passes.append(side), run(self, side))[1]
    )
    [step] = prepared(trainer, monkeypatch)
    assert len(passes) == 3  # the teacher's trunk runs once for each micro-batch
    weights = torch.cat(
        [
            (-logp_of(make_model(), row.teacher_prompt_ids, row.response_ids)[:, 1]).exp()
            for batch, _, _ in step
            for row in batch.rows
            if not row.rollout.success
        ]
    )
    shares = torch.cat(
        [batch.weight_N[batch.success_N == 0] for batch, _, _ in step]
    ).double()  # of the aggregation
    for _, _, mean in step:
        assert mean == pytest.approx(((shares * weights).sum() / shares.sum()).item(), rel=1e-5)


def test_the_second_teacher_is_the_mean_of_the_wrong_contexts(
    make_trainer, make_model, monkeypatch
):
    trainer = make_trainer(recipe="rlcsd")
    said = []
    call = TeacherPasses.__call__

    def noted(self, batch, timers):
        said.append((batch, call(self, batch, timers).second_logp_N))
        return call(self, batch, timers)

    monkeypatch.setattr(TeacherPasses, "__call__", noted)
    trainer.train()
    ((batch, second_N),) = said
    at = 0
    for row in batch.rows:
        expected = torch.stack(
            [
                logp_of(make_model(), prompt, row.response_ids)[:, 0]
                for prompt in row.negative_prompt_ids
            ]
        ).logsumexp(0) - math.log(len(row.negative_prompt_ids))
        got = second_N[at : at + len(expected)]
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)
        at += len(expected)
    # The target is no context of its own: wrong responses have one wrong other, right ones two.
    assert [len(row.negative_prompt_ids) for row in batch.rows] == [2, 1, 2, 1]


def test_the_trust_region_teacher_mixes_both_models(make_trainer, make_model, monkeypatch):
    trainer = make_trainer(
        recipe="sdpo", teacher_model_kind="trust_region", teacher_update_rate=0.3
    )
    student = make_model(seed=5)
    trainer.model.load_state_dict(student.state_dict())  # the teacher's copy stays as it was
    seen = []
    call = type(trainer.step_loss).__call__

    def noted(self, model, batch, *rest):
        result = call(self, model, batch, *rest)
        seen.append((batch, result[1]))
        return result

    monkeypatch.setattr(type(trainer.step_loss), "__call__", noted)
    trainer.train()
    ((batch, stats),) = seen
    row = batch.rows[1]
    ids = torch.tensor([row.teacher_prompt_ids + row.response_ids])
    with torch.no_grad():
        mixed = 0.7 * make_model()(ids).logits[0] + 0.3 * student(ids).logits[0]
    logp = mixed.double().log_softmax(-1)[len(row.teacher_prompt_ids) - 1 : -1]
    expected = logp.gather(-1, torch.tensor(row.response_ids)[:, None]).squeeze(-1)
    got = stats.teacher_logp[batch.row_N == 1].double()
    torch.testing.assert_close(got, expected, rtol=1e-4, atol=1e-5)


def test_the_gate_of_antisd_survives_a_resume(make_trainer, tmp_path):
    settings = {
        "recipe": "antisd",
        "gate_args": {"warmup_steps": 2, "off_ratio": 0.999, "on_ratio": 1.5},
        "max_steps": 4,
        "save_strategy": "steps",
        "save_steps": 3,
        "save_total_limit": None,
        "teacher_model_kind": "ema",
        "teacher_update_rate": 0.5,
    }
    whole = make_trainer(**settings, output_dir=str(tmp_path / "whole"))
    whole.train()
    resumed = make_trainer(**settings, output_dir=str(tmp_path / "resumed"))
    resumed.train(str(tmp_path / "whole" / "checkpoint-3"))
    ours, theirs = whole.step_loss.gate, resumed.step_loss.gate
    assert ours.reference_nats is not None
    assert ours.state_dict() == theirs.state_dict()
    lines = [whole.metrics_log.read()[3], resumed.metrics_log.read()[0]]
    assert lines[0]["direction"] == lines[1]["direction"]
    assert lines[0]["loss"] == lines[1]["loss"]


def test_rollouts_of_one_and_a_few_tokens_have_no_direction(make_trainer, monkeypatch):
    """Fewer tokens than a gate's quantile takes: the verifier's advantage alone."""
    trainer = make_trainer(recipe="dasd")
    trainer.train()
    (line,) = trainer.metrics_log.read()
    assert (line["direction"], line["push_share"]) == (0.0, 0.0)
    assert line["grad_norm"] > 0


def step_of(*sums: list[float], too_hot=False, over_ranks=lambda own: own, schedule=None):
    """Micro-batches after `prepare`, by the sum and the weight of their quantity."""
    started = []
    step_loss = SimpleNamespace(
        recipe=SimpleNamespace(batch_quantity=object(), schedule=schedule),
        switches=SimpleNamespace(too_hot=too_hot, start_step=lambda: started.append(1)),
        quantity=lambda batch, timers: torch.tensor(batch.sums),
    )
    batches = [SimpleNamespace(sums=pair) for pair in sums]
    passes = MethodPasses(step_loss, lambda function: function(None), over_ranks)
    passes.prepare(batches, 4, None)
    assert started == [1]  # what an abandoned step left is forgotten
    return batches


def test_the_batch_mean_is_that_of_all_ranks():
    batches = step_of([3.0, 1.0], [1.0, 3.0], over_ranks=lambda own: own + torch.tensor([8.0, 4.0]))
    assert [batch.batch_mean for batch in batches] == [1.5, 1.5]


def test_a_step_of_nothing_has_no_batch_mean():
    assert [batch.batch_mean for batch in step_of([0.0, 0.0])] == [None]


@pytest.mark.parametrize(("too_hot", "strength"), [(False, 0.5), (True, 0.0)])
def test_a_step_that_is_too_hot_has_no_strength(too_hot, strength):
    (batch,) = step_of([1.0, 1.0], too_hot=too_hot, schedule=lambda step: 1 - step / 8)
    assert batch.strength == strength
