"""What the trainer refuses before the first step, and rows and tokens that it leaves out."""

from __future__ import annotations

from typing import Any

import pytest
from helpers.trainer_runs import FixedRollout, lines

from sdkernels import recipes
from sdkernels.contexts import Example
from sdkernels.train.step_loss import make_gate


def test_refusals_name_the_row(make_trainer, make_problems):
    problems = make_problems(3)
    with pytest.raises(ValueError, match=r"example 'add-2' \(row 3\).*tokens, max_prompt_length"):
        make_trainer(examples=problems, max_prompt_length=32)
    lacking = [*problems[:2], Example(id="x", prompt=problems[2].prompt, answer="3")]
    with pytest.raises(ValueError, match=r"needs `solution`, which 1 of 3 examples lack.*id 'x'"):
        make_trainer(examples=lacking)
    unjudged = [Example(id="y", prompt=problems[0].prompt, metadata={"row": "row 9"})]
    both = [problems[0], *unjudged, Example(id="z", prompt=problems[0].prompt, answer=" ")]
    for recipe in ("grpo", "rlsd"):
        with pytest.raises(
            ValueError,
            match=rf"recipe '{recipe}' needs `answer`, which 2 of 3 examples lack: "
            r"row 9 \(id 'y'\); example 3 \(id 'z'\)\. Add it, .* or choose a recipe without it",
        ):
            make_trainer(examples=both, recipe=recipe)
    for context, fields in (
        ("sibling_solution", "`answer`"),
        ("verifier_feedback", "`answer` or `feedback`"),
    ):
        with pytest.raises(ValueError, match=rf"needs {fields}, which 1 of 3 .*row 9 \(id 'y'\)"):
            make_trainer(examples=[*problems[:2], *unjudged], recipe="sdpo", context=context)
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


def test_a_support_of_more_than_the_vocabulary(make_trainer, tokenizer):
    size = len(tokenizer)
    settings = {"recipe": "opsd", "context": "hint"}
    support = {"support": "student_topk", "topk": size + 1}
    with pytest.raises(
        ValueError, match=rf"topk={size + 1}: the vocabulary .* has {size} entries; set {size} or"
    ):
        make_trainer(**settings, recipe_args=support)
    make_trainer(**settings, recipe_args={**support, "topk": size})


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


def test_the_hard_gate_has_the_guard_of_the_smooth_one(make_config):
    hard, smooth = (
        make_gate(make_config(gate=name), recipes.get("dasd"))
        for name in ("entropy_sign", "direction_adaptive")
    )
    assert hard.min_tokens == smooth.min_tokens == 8


@pytest.mark.parametrize(
    ("settings", "least"),
    [
        ({"quantile": 0.5}, 8),
        ({"quantile": 0.5, "scope": "batch"}, 8),
        ({"quantile": 0.5, "min_tokens": 3}, 3),
        ({"tau": 0.5}, 2),  # without effect: no quantile is taken
    ],
)
def test_the_hard_gates_guard_stays_with_settings(make_config, settings, least):
    gate = make_gate(make_config(gate="entropy_sign", gate_args=settings), recipes.get("dasd"))
    assert gate.min_tokens == least


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rhoo": 0.2}, "setting='rhoo' .did you mean 'rho'.*reading, scope"),
        (
            {"rho": "much"},
            "direction_adaptive': rho='much' is not accepted; give a number in ",
        ),
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
