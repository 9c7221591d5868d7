"""The trainer end to end on a tiny random model."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
import torch

from sdkernels import contexts, recipes
from sdkernels.contexts import Example
from sdkernels.train.rollout import Sample
from sdkernels.train.step_metrics import LISTS, MEANS, SUMS
from sdkernels.train.trainer import SelfDistillTrainer

METRICS_KEYS = "step loss grad_norm learning_rate tokens_per_second peak_memory_bytes seconds"
SECONDS_KEYS = "rollout context student_forward teacher_forward loss backward optimizer"


class FixedRollout:
    """The same responses for a prompt whoever asks: lengths and ids follow from the prompt."""

    def __init__(self, tokenizer: Any, *, text: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.text = text
        self.calls: list[int] = []

    def generate(self, prompts_ids, num_generations, sampling, *, seed):
        self.calls.append(len(prompts_ids))
        return [
            [self._sample(ids, i, sampling.max_new_tokens) for i in range(num_generations)]
            for ids in prompts_ids
        ]

    def _sample(self, prompt: list[int], index: int, limit: int) -> Sample:
        if self.text is not None:
            ids = self.tokenizer(self.text)["input_ids"]
            return Sample([*ids, self.tokenizer.eos_token_id], self.text, False)
        length = 3 + (sum(prompt) + index) % (limit - 2)
        ids = [3 + (7 * sum(prompt) + 11 * index + 5 * j) % 250 for j in range(length)]
        return Sample(ids, self.tokenizer.decode(ids), True)


@pytest.fixture
def make_trainer(tokenizer, make_model, make_config, make_problems):
    def make(*, model: Any = None, examples: list[Example] | None = None, **changes: Any):
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


def lines(trainer: SelfDistillTrainer) -> list[dict[str, Any]]:
    return trainer.metrics_log.read()


def weights(model: Any) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)


# --- step 0: nothing to learn from oneself ------------------------------------------------------


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


def test_a_context_gives_a_gap(make_trainer):
    trainer = make_trainer(recipe="sdft", context="reference_solution", max_steps=1)
    trainer.train()
    assert lines(trainer)[0]["gap_abs"] > 1e-3
    assert lines(trainer)[0]["grad_norm"] > 1e-3


# --- accumulation and packing ---------------------------------------------------------------------


# What is normalised over a batch must not depend on how the batch is cut.
CUT = [
    ("sdpo", {}),
    ("dasd", {}),
    ("dasd", {"gate_args": {"scope": "batch", "min_tokens": 1}}),
    ("grpo", {}),
]
CUT_NEW = [
    ("srpo", {"context": "sibling_solution"}),
    ("rlcsd", {"recipe_args": {"tau": 1.0, "threshold": 0.3}}),
    ("cepo", {"context": "contrastive"}),
    ("antisd", {"gate_args": {"warmup_steps": 1}}),
]


@pytest.mark.parametrize(
    ("aggregation", "recipe", "settings"),
    [
        *(("token_mean", *case) for case in CUT + CUT_NEW),
        *(("sequence_mean", *case) for case in CUT),
    ],
)
def test_accumulation_1x8_equals_8x1(
    make_trainer, make_model, tokenizer, tmp_path, recipe, settings, aggregation
):
    results = []
    sizes = ((1, 8), (8, 1), (3, 3))
    for size, accumulation in sizes if (recipe, settings) in CUT else sizes[:2]:
        model = make_model()
        trainer = make_trainer(
            model=model,
            rollout=FixedRollout(tokenizer),
            recipe=recipe,
            aggregation=aggregation,
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            num_generations=3,
            max_steps=2,
            max_grad_norm=0.0,
            optim="sgd",
            learning_rate=0.1,
            output_dir=str(tmp_path / f"{size}x{accumulation}"),
            **settings,
        )
        # Verdicts of fixed responses are all wrong; rewards that differ make advantages that do.
        trainer.builder.verifier = by_length
        trainer.train()
        results.append((lines(trainer), weights(model)))
    (reference, reference_weights), *others = results
    assert reference[0]["grad_norm"] > 1e-4
    for other, other_weights in others:
        for ours, theirs in zip(reference, other, strict=True):
            for key in ("loss", "grad_norm", "num_tokens", "entropy", "gap", "direction"):
                expected = (
                    None if ours[key] is None else pytest.approx(ours[key], rel=2e-5, abs=1e-7)
                )
                assert theirs[key] == expected, key
        assert largest_difference(reference_weights, other_weights) < 2e-6


class Writer:
    """Explains, without a quote."""

    def write(self, prompts: list[Any]) -> list[str]:
        return ["<why>Add one by one.</why>"] * len(prompts)


def by_length(text: str, example: Example) -> Any:
    from sdkernels.train.verify import Verdict

    right = len(text) % 2 == 0
    return Verdict(right, float(right), None, "feedback")


def test_rollouts_of_a_step_are_sampled_in_one_go(make_trainer, tokenizer):
    rollout = FixedRollout(tokenizer)
    make_trainer(
        rollout=rollout, per_device_train_batch_size=1, gradient_accumulation_steps=4, max_steps=2
    ).train()
    assert rollout.calls == [4, 4]


def test_sampled_rollouts_do_not_depend_on_accumulation(make_trainer, make_config, tmp_path):
    seen = []
    for size, accumulation in ((1, 4), (4, 1)):
        trainer = make_trainer(
            per_device_train_batch_size=size,
            gradient_accumulation_steps=accumulation,
            max_steps=1,
            dump_tokens=8,
            output_dir=str(tmp_path / f"{size}"),
        )
        trainer.train()
        records = trainer.tokens_log.read()
        seen.append(sorted((r["example_id"], "".join(r["tokens"])) for r in records))
    assert len(seen[0]) == 8
    assert seen[0] == seen[1]


def test_every_recipe_learns_or_says_what_it_needs(make_trainer, make_model, tmp_path):
    for name in recipes.names():
        model = make_model()
        before = weights(model)
        trainer = make_trainer(
            model=model,
            recipe=name,
            max_steps=1,
            num_generations=3,
            max_completion_length=12,
            output_dir=str(tmp_path / name),
            critic=Writer(),
        )
        trainer.builder.verifier = by_length
        trainer.train()
        (line,) = lines(trainer)
        assert math.isfinite(line["loss"]), name
        assert line["grad_norm"] > 0, name
        assert largest_difference(before, weights(model)) > 0, name


class Echo:
    """A critic without a model."""

    def critique(self, pairs):
        return [f"Step 1: the answer is {example.answer}." for example, _ in pairs]

    def write(self, prompts):
        return ["<why>Add one by one.</why>"] * len(prompts)


@pytest.mark.parametrize("name", contexts.names())
def test_every_context_goes_through_the_trainer(make_trainer, tokenizer, name):
    examples = [
        Example(**(vars(e) | {"feedback": "The sum is off.", "stronger_solution": "Add. Done."}))
        for e in make_trainer(max_steps=1).train_dataset
    ]
    trainer = make_trainer(
        context=name,
        recipe="sdft",
        examples=examples,
        max_steps=1,
        dump_tokens=1,
        critic=Echo() if contexts.get(name).generates else None,
        max_completion_length=24,
        rollout=FixedRollout(tokenizer, text="Answer: 3"),  # right for the first problem
        per_device_train_batch_size=8,
    )
    trainer.train()
    (line,) = lines(trainer)
    assert math.isfinite(line["loss"])
    if name in ("sibling_solution", "sibling_and_feedback"):
        assert 0 < line["signal_share"] < 1 or line["signal_share"] == 1
    if line["signal_share"] == 0:
        assert line["gap"] is None
        assert line["num_tokens"] == 0
    elif name != "none":
        assert line["gap_abs"] > 0


def test_rows_without_signal_weigh_nothing(make_trainer, make_model, tokenizer, tmp_path):
    """A step in which nobody succeeded has no sibling solution: the weights stay as they are."""
    model = make_model()
    before = weights(model)
    trainer = make_trainer(
        model=model, context="sibling_solution", recipe="sdpo", rollout=FixedRollout(tokenizer)
    )
    trainer.train()
    assert [line["signal_share"] for line in lines(trainer)] == [0.0, 0.0]
    assert [line["loss"] for line in lines(trainer)] == [0.0, 0.0]
    assert [line["gap"] for line in lines(trainer)] == [None, None]
    assert largest_difference(before, weights(model)) == 0.0


# --- fused against plain --------------------------------------------------------------------------


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


# --- teachers -------------------------------------------------------------------------------------


def test_frozen_teacher_stays_and_live_follows(make_trainer, make_model):
    trainer = make_trainer(recipe="sdft", max_steps=2)
    before = weights(trainer.teacher.model)
    trainer.train()
    assert largest_difference(before, weights(trainer.teacher.model)) == 0.0
    assert largest_difference(before, weights(trainer.model)) > 1e-3


def test_external_teacher_of_another_width(make_trainer, make_model):
    teacher = make_model(seed=3, hidden_size=16, tie_word_embeddings=False).requires_grad_(False)
    trainer = make_trainer(
        recipe="sdpo",
        teacher_model_kind="external",
        teacher_model_name_or_path="given",
        teacher_model=teacher,
        context="none",
    )
    trainer.train()
    assert all(line["gap_abs"] > 0.01 for line in lines(trainer))


def test_lora_off_teacher(make_trainer, make_model):
    from sdkernels.train.loading import add_lora

    base = make_model()
    frozen = weights(base)
    model = add_lora(base, r=4, alpha=8, dropout=0.0, target_modules=None)
    trainer = make_trainer(
        model=model, recipe="sdft", teacher_model_kind="lora_off", context="none", max_steps=3
    )
    trainer.train()
    first, *_ = lines(trainer)
    # The adapter starts as a no-op, so with no context there is nothing to learn, exactly.
    assert (first["loss"], first["gap_abs"], first["grad_norm"]) == (0.0, 0.0, 0.0)
    own = {n.replace(".base_layer", ""): p for n, p in base.named_parameters() if "lora_" not in n}
    assert all(torch.equal(own[name], value) for name, value in frozen.items())


def test_lora_trains_towards_the_teacher(make_trainer, make_model):
    from sdkernels.train.loading import add_lora

    model = add_lora(make_model(), r=4, alpha=8, dropout=0.0, target_modules=None)
    trainer = make_trainer(model=model, recipe="sdft", teacher_model_kind="lora_off", max_steps=3)
    before = weights(model)
    trainer.train()
    after = weights(model)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    assert all("lora_" in name for name in moved)


# --- records --------------------------------------------------------------------------------------


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


# --- refusals before training ---------------------------------------------------------------------


def test_refusals_name_the_row(make_trainer, make_problems):
    problems = make_problems(3)
    with pytest.raises(ValueError, match=r"example 'add-2' \(row 3\).*tokens, max_prompt_length"):
        make_trainer(examples=problems, max_prompt_length=32)
    lacking = [*problems[:2], Example(id="x", prompt=problems[2].prompt, answer="3")]
    with pytest.raises(ValueError, match=r"needs `solution`, which 1 of 3 examples lack.*id 'x'"):
        make_trainer(examples=lacking)
    unjudged = [Example(id="y", prompt=problems[0].prompt, metadata={"row": "row 9"})]
    with pytest.raises(ValueError, match="row 9: can't be verified"):
        make_trainer(examples=unjudged, recipe="grpo")
    with pytest.raises(ValueError, match="dataset is empty"):
        make_trainer(examples=[])


def test_a_solution_longer_than_the_window_is_refused_or_cut(make_trainer, make_problems):
    long = make_problems(2)
    long[1] = Example(**(vars(long[1]) | {"solution": "carry on " * 200}))
    settings = {"examples": long, "recipe": "sdft", "max_prompt_length": 128}
    with pytest.raises(ValueError, match="`solution` of 1 of 2 examples is longer than"):
        make_trainer(**settings)
    trainer = make_trainer(**settings, truncate_context=True, max_steps=1)
    trainer.train()
    assert trainer.builder.services.counts["truncated"] >= 1


def test_a_window_that_leaves_no_room(make_trainer):
    with pytest.raises(ValueError, match="leave no room for a context in the model's window of 10"):
        make_trainer(max_completion_length=600)


def test_a_recipe_with_inputs_that_no_trainer_makes(make_trainer, monkeypatch):
    import dataclasses

    made = recipes.get

    def strange(name: str, **settings: Any) -> Any:
        return dataclasses.replace(made(name, **settings), inputs=frozenset({"moon_phase"}))

    monkeypatch.setattr(recipes, "get", strange)
    with pytest.raises(ValueError, match="moon_phase"):
        make_trainer(recipe="sdft")


def test_a_gate_without_use_is_refused(make_trainer):
    with pytest.raises(ValueError, match="gate='entropy_sign' has no effect with recipe 'sdft'"):
        make_trainer(recipe="sdft", gate="entropy_sign")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rhoo": 0.2}, "setting='rhoo' .did you mean 'rho'.*reading, scope"),
        ({"rho": "much"}, "gate_args={'rho': 'much'} of gate 'direction_adaptive': "),
    ],
)
def test_wrong_settings_of_a_gate_are_named(make_trainer, settings, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(recipe="dasd", context="final_answer", gate_args=settings)


def test_cutting_contexts_does_not_let_rows_without_one_pass(make_trainer):
    with pytest.raises(ValueError, match="needs `stronger_solution`, which"):
        make_trainer(context="stronger_solution", truncate_context=True).train()


def test_truncated_rollouts_can_be_left_out(make_trainer, tokenizer):
    trainer = make_trainer(
        rollout=FixedRollout(tokenizer), recipe="sdft", mask_truncated_completions=True
    )
    trainer.train()
    assert [line["num_tokens"] for line in lines(trainer)] == [0, 0]
    assert [line["truncated_share"] for line in lines(trainer)] == [1.0, 1.0]


def test_first_tokens_can_be_left_out(make_trainer, tokenizer, tmp_path):
    counts = []
    for skip in (0, 2):
        trainer = make_trainer(
            rollout=FixedRollout(tokenizer),
            recipe="sdft",
            skip_first_tokens=skip,
            max_steps=1,
            output_dir=str(tmp_path / str(skip)),
        )
        trainer.train()
        counts.append(lines(trainer)[0]["num_tokens"])
    assert counts[0] - counts[1] == 2 * 2 * 2  # prompts x generations x skipped
