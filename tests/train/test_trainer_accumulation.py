"""The trainer cuts a batch into micro-batches without changing what is learnt."""

from __future__ import annotations

import pytest
from helpers.trainer_runs import FixedRollout, by_length, largest_difference, lines, weights

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
