"""The kinds of teacher in the trainer."""

from __future__ import annotations

import torch
from helpers.trainer_runs import largest_difference, lines, weights


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
