"""Every recipe and every context goes through the trainer."""

from __future__ import annotations

import math

import pytest
from helpers.trainer_runs import (
    Echo,
    FixedRollout,
    by_length,
    largest_difference,
    lines,
    weights,
)

from sdkernels import contexts, recipes
from sdkernels.contexts import Example


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
            critic=Echo(),
        )
        trainer.builder.verifier = by_length
        trainer.train()
        (line,) = lines(trainer)
        assert math.isfinite(line["loss"]), name
        assert line["grad_norm"] > 0, name
        assert largest_difference(before, weights(model)) > 0, name


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
        num_generations=max(2, contexts.get(name).least_group),
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


def test_the_logged_direction_is_the_one_that_acted(make_trainer):
    """Without a gate AntiSD pushes every token."""
    trainer = make_trainer(
        recipe="antisd",
        recipe_args={"gated": False},
        context="reference_solution",
        max_steps=1,
    )
    trainer.train()
    (line,) = lines(trainer)
    assert (line["direction"], line["push_share"]) == (-1.0, 1.0)
