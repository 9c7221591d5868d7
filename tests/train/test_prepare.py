"""Rows of an optimisation step: verdicts, advantages, teacher prompts, weights."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from helpers.chat_templates import QWEN3

from sdkernels import contexts, recipes
from sdkernels.contexts import Example, Services
from sdkernels.train.prepare import (
    StepBuilder,
    context_limit,
    sampling_of,
    sampling_of_evaluation,
)
from sdkernels.train.rollout import Sample
from sdkernels.train.step_metrics import StepMetrics, Timers
from sdkernels.train.verify import Verdict


class Texts:
    """Gives responses from a list, and remembers the seeds."""

    def __init__(self, tokenizer, texts):
        self.tokenizer, self.texts, self.seeds = tokenizer, texts, []

    def generate(self, prompts_ids, num_generations, sampling, *, seed):
        self.seeds.append(seed)
        texts = iter(self.texts)
        return [
            [
                Sample(self.tokenizer(text)["input_ids"], text, truncated="cut" in text)
                for text in (next(texts) for _ in range(num_generations))
            ]
            for _ in prompts_ids
        ]


@pytest.fixture
def build(make_config, tokenizer):
    def make(
        examples, texts, *, recipe="dasd", context="sibling_solution", services=None, **changes
    ):
        config = make_config(recipe=recipe, context=context, **{"num_generations": 2} | changes)
        backend = Texts(tokenizer, texts)
        builder = StepBuilder(
            config,
            tokenizer,
            recipes.get(recipe),
            contexts.get(context),
            backend,
            services or Services(tokenizer=tokenizer),
            window=1024,
        )
        metrics = StepMetrics()
        rows = builder.build(
            examples,
            step=3,
            rank=1,
            timers=Timers(torch.device("cpu")),
        )
        builder.count(rows, metrics)
        from types import SimpleNamespace

        return builder, rows, metrics.take(SimpleNamespace(num_processes=1))

    return make


def test_groups_have_their_own_advantages_and_siblings(build, make_problems):
    first, second = make_problems(2)  # 1+2 and 2+5
    texts = ["Answer: 3", "Answer: 4", "Answer: 1", "Answer: 2 cut"]
    builder, rows, metrics = build([first, second], texts)
    assert [row.rollout.success for row in rows] == [True, False, False, False]
    half = 0.5 / (0.5**0.5 + 1e-6)  # n - 1 in the standard deviation
    assert [row.advantage for row in rows] == pytest.approx([half, -half, 0, 0])
    # Only the wrong rollout of the first group has a correct sibling.
    assert [row.teacher_prompt_ids is not None for row in rows] == [False, True, False, False]
    assert metrics["signal_share"] == 0.25
    assert (metrics["accuracy"], metrics["truncated_share"]) == (0.25, 0.25)
    # The others keep their verifier's advantage; a recipe that has none for them leaves them out.
    assert builder.mask(rows).any(dim=1).all()
    builder.recipe = recipes.get("sdpo")
    assert builder.mask(rows).any(dim=1).tolist() == [False, True, False, False]


def test_the_same_example_twice_makes_two_groups(build, make_problems):
    (first,) = make_problems(1)
    texts = ["Answer: 3", "Answer: 4", "Answer: 5", "Answer: 6"]
    _, rows, _ = build([first, first], texts)
    assert [row.teacher_prompt_ids is not None for row in rows] == [False, True, False, False]
    assert rows[2].advantage == rows[3].advantage == 0


def test_advantages_without_scaling(build, make_problems):
    _, rows, _ = build(make_problems(1), ["Answer: 3", "Answer: 4"], scale_rewards="none")
    assert [row.advantage for row in rows] == [0.5, -0.5]


def test_a_majority_needs_no_answers(build):
    example = Example("a", [{"role": "user", "content": "q"}])
    texts = ["Answer: 3", "it is 3", "Answer: 4"]
    rows = build([example], texts, recipe="opsd", context="majority_vote", num_generations=3)[1]
    assert [row.rollout.extracted for row in rows] == ["3", "3", "4"]
    assert [row.rollout.reward for row in rows] == [None] * 3
    shown = [row.teacher_messages[-1]["content"] for row in rows]
    assert "it is 3" in shown[0]
    assert "Answer: 3" in shown[1]


def test_examples_without_answer_are_not_judged(build, make_problems):
    (first,) = make_problems(1)
    unjudged = Example(**(vars(first) | {"answer": None}))
    _, rows, metrics = build(
        [unjudged], ["Answer: 3", "x"], recipe="sdft", context="reference_solution"
    )
    assert [row.rollout.success for row in rows] == [None, None]
    assert metrics["reward"] is None
    assert metrics["signal_share"] == 1


def test_seeds_differ_by_step_and_rank(build, make_problems):
    builder, _, _ = build(make_problems(1), ["a", "b"])
    settings = {"timers": Timers(torch.device("cpu"))}
    for step, rank in ((3, 1), (4, 1), (3, 0)):
        builder.build(make_problems(1), step=step, rank=rank, **settings)
    seeds = builder.backend.seeds
    assert seeds[0] == seeds[1]
    assert len(set(seeds)) == 3


def test_weights_add_up_to_one_mean(build, make_problems):
    texts = ["aaaa", "bb", "c", "dddddd"]
    for mode in ("token_mean", "sequence_mean"):
        builder, rows, _ = build(
            make_problems(2), texts, recipe="sdft", context="hint", aggregation=mode
        )
        mask_BL = builder.mask(rows)
        builder.weigh(rows, mask_BL, builder.num_items(mask_BL))
        assert sum(sum(row.weights) for row in rows) == pytest.approx(1)
        lengths = [len(row.weights) for row in rows]
        assert lengths == [4, 2, 1, 6]
        expected = [1 / 13] * 4 if mode == "token_mean" else [1 / 4 / n for n in lengths]
        assert [row.weights[0] for row in rows] == pytest.approx(expected)


def test_a_teacher_prompt_that_does_not_fit_names_the_row(build, make_problems):
    example = make_problems(1)[0]
    long = Example(**(vars(example) | {"solution": "Wrong again. " * 90}))
    with pytest.raises(ValueError, match=r"example 'add-0' \(row 1\): its teacher prompt of \d+"):
        build([long], ["a", "b"], recipe="sdft", context="reference_solution")


def test_verdicts_travel_to_the_rollout(build, make_problems, tokenizer):
    builder, _, _ = build(make_problems(1), ["a", "b"])
    builder.verifier = lambda text, example: Verdict(True, 0.5, "x", "well done")
    rollout = builder._rollout(make_problems(1)[0], 0, Sample([1], "a", False))
    assert (rollout.reward, rollout.success, rollout.extracted) == (0.5, True, "x")
    assert rollout.feedback == "well done"


def test_limits_and_sampling(make_config):
    config = make_config(max_prompt_length=100, max_completion_length=50, temperature_eval=0.0)
    assert context_limit(config, 1000) == 1000 - 100 - 50 - 128
    assert context_limit(config, None) is None
    assert context_limit(make_config(max_context_tokens=7), 1000) == 7
    assert sampling_of(config).temperature == 1.0
    assert sampling_of_evaluation(config).temperature == 0.0
    assert sampling_of_evaluation(make_config(temperature=0.6)).temperature == 0.6


def test_negatives_of_the_contrasting_teacher(build, make_problems, tokenizer):
    (first,) = make_problems(1)
    texts = ["Answer: 3", "Answer: 4", "Answer: 5"]
    builder, rows, _ = build(
        [first], texts, recipe="rlcsd", context="contrastive", num_generations=3
    )
    # The first has no other correct response beside it; the wrong ones have one wrong other each.
    assert [len(row.negative_prompt_ids) for row in rows] == [0, 1, 1]
    assert "Answer: 5" in tokenizer.decode(rows[1].negative_prompt_ids[0])
    assert "Answer: 3" in tokenizer.decode(rows[1].teacher_prompt_ids)
    assert builder.mask(rows).any(dim=1).tolist() == [False, True, True]


class Writer:
    """Quotes a part of wrong responses as their error."""

    def __init__(self, quote="4 cut"):
        self.quote = quote

    def write(self, prompts):
        return [f"<quote>{self.quote}</quote><why>count again</why>"] * len(prompts)


def test_a_wrong_response_counts_from_its_error_on(build, make_problems):
    (first,) = make_problems(1)
    services = Services(writer=Writer())
    texts = ["Answer: 3", "Answer: 4 cut"]
    builder, rows, _ = build(
        [first], texts, recipe="rosd", context="self_reflection", services=services
    )
    lengths = [len(row.response_ids) for row in rows]
    assert rows[1].error_start == len("Answer: ")
    counted = [int(row.sum()) for row in builder.mask(rows)]
    assert counted == [lengths[0], lengths[1] - len("Answer: ")]
    # Without localisation, and for other recipes, the whole response counts.
    for recipe in (recipes.get("rosd", localise=False), recipes.get("sdpo")):
        rows[1].error_start = 0
        builder.recipe = recipe
        builder._set_teacher_prompts(rows)
        assert rows[1].error_start == 0


def test_groups_without_success_are_skipped_by_rosd(build, make_problems):
    first, second = make_problems(2)
    texts = ["Answer: 3", "Answer: 4", "Answer: 1", "Answer: 2"]
    _, rows, metrics = build([first, second], texts, recipe="rosd", context="reference_solution")
    has_prompt = [row.teacher_prompt_ids is not None for row in rows]
    assert has_prompt == [True, True, False, False]
    assert metrics["failed_group_share"] == 0.5
    assert metrics["solved_group_share"] == 0.0


def test_a_lone_success_is_left_out_by_rlcsd_and_counted(build, make_problems):
    """It has no other correct sibling for its right side; its wrong siblings have it for theirs."""
    (first,) = make_problems(1)
    texts = ["Answer: 3", "Answer: 4", "Answer: 5"]
    builder, rows, metrics = build(
        [first], texts, recipe="rlcsd", context="contrastive", num_generations=3
    )
    assert [bool(row.any()) for row in builder.mask(rows)] == [False, True, True]
    assert metrics["lone_success_share"] == 1.0
    assert metrics["signal_share"] == pytest.approx(2 / 3)


def test_solved_groups_and_single_tokens_are_logged(build, make_problems):
    (first,) = make_problems(1)
    _, rows, metrics = build([first], ["Answer: 3", "Answer: 3"], recipe="srpo")
    assert [row.advantage for row in rows] == [0, 0]
    assert (metrics["solved_group_share"], metrics["failed_group_share"]) == (1.0, 0.0)
    _, _, metrics = build([first], ["a", "bb"])
    assert metrics["single_token_share"] == 0.5


def test_a_misspelt_switch_of_either_side_is_named(build, make_problems, monkeypatch, tokenizer):
    """With the student's off the two prompts differ, even where the teacher's is not read."""
    monkeypatch.setattr(tokenizer, "chat_template", QWEN3)
    examples, texts = make_problems(1), ["Answer: 3", "Answer: 4"]
    right, wrong = {"enable_thinking": False}, {"enable_thinkng": True}
    with pytest.raises(ValueError, match=r"^teacher_chat_template_kwargs=.*'enable_thinkng'"):
        build(examples, texts, chat_template_kwargs=right, teacher_chat_template_kwargs=wrong)
    with pytest.raises(ValueError, match=r"^chat_template_kwargs=.*'enable_thinkng'"):
        build(examples, texts, chat_template_kwargs=wrong)


def test_an_error_at_the_very_beginning_leaves_nothing_out(build, make_problems):
    builder, rows, _ = build(
        make_problems(1),
        ["Answer: 3", "Answer: 4 cut"],
        recipe="rosd",
        context="self_reflection",
        services=Services(writer=Writer("Answer: 4")),
    )
    assert rows[1].teacher_prompt_ids is not None
    assert builder.mask(rows)[1].sum() == len(rows[1].response_ids)


@pytest.mark.parametrize(("aggregation", "items"), [("token_mean", 5), ("sequence_mean", 2)])
def test_the_denominator_counts_what_has_a_token(build, make_problems, aggregation, items):
    builder, _, _ = build(make_problems(1), ["a", "b"], aggregation=aggregation)
    mask = torch.tensor([[1, 1, 1, 0], [0, 0, 0, 0], [0, 1, 1, 0]]).bool()
    assert builder.num_items(mask) == items


def test_every_setting_of_sampling_arrives(make_config):
    settings = {"temperature": 0.9, "top_p": 0.8, "top_k": 7, "min_p": 0.1}
    settings |= {"repetition_penalty": 1.2}
    config = make_config(
        max_completion_length=50, generation_kwargs={"no_repeat_ngram_size": 3}, **settings
    )
    sampling = sampling_of(config)
    assert {name: getattr(sampling, name) for name in settings} == settings
    assert sampling.max_new_tokens == 50
    assert sampling.extra == {"no_repeat_ngram_size": 3}
    assert sampling_of_evaluation(config) == sampling


def test_a_prompt_may_fill_the_window_exactly(build, make_problems):
    (example,) = make_problems(1)
    builder, _, _ = build([example], ["a", "b"], context="reference_solution", recipe="sdft")
    builder.window = 10 + builder.config.max_completion_length
    builder._check_window(example, 10, "prompt")
    with pytest.raises(ValueError, match="its prompt of 11 tokens"):
        builder._check_window(example, 11, "prompt")


def test_a_context_needs_room_for_a_token(make_config):
    config = make_config(max_prompt_length=100, max_completion_length=50)
    assert context_limit(config, 100 + 50 + 128 + 1) == 1
    with pytest.raises(ValueError, match="leave no room"):
        context_limit(config, 100 + 50 + 128)


def test_without_a_teacher_too_a_prompt_needs_room_for_its_response(build, make_problems):
    builder, _, _ = build(make_problems(1), ["a", "b"], recipe="grpo", context="none")
    builder.check(make_problems(1))
    builder.window = builder.config.max_completion_length + 3
    with pytest.raises(ValueError, match=r"add-0.*its prompt of \d+ tokens"):
        builder.check(make_problems(1))


def test_a_recipe_that_looks_for_successes_needs_answers(build, make_problems):
    (example,) = make_problems(1)
    services = Services(writer=Writer())
    settings = {"recipe": "rosd", "context": "self_reflection", "services": services}
    builder, _, _ = build([example], ["Answer: 3", "b"], **settings)
    with pytest.raises(ValueError, match=r"recipe 'rosd'.*answer"):
        builder.check([replace(example, answer=None)])


def test_an_answer_of_an_unknown_kind_is_refused_before_the_first_step(build, make_problems):
    (example,) = make_problems(1)
    builder, _, _ = build([example], ["a", "b"], recipe="sdft", context="reference_solution")
    with pytest.raises(ValueError, match="riddle"):
        builder.check([replace(example, task="riddle")])
