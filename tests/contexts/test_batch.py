"""Building a batch, and checking a data set before training."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from helpers.word_tokenizer import WordTokenizer

from sdkernels import contexts
from sdkernels.contexts import (
    Example,
    Rollout,
    Services,
    build_batch,
    build_prompts,
    validate,
)
from sdkernels.contexts.sample import sample_services

PROMPT = [{"role": "user", "content": "q"}]


def example(name: str, **fields: str) -> Example:
    return Example(id=name, prompt=PROMPT, **fields)  # type: ignore[arg-type]


def rollout(name: str, index: int, *, success: bool = False) -> Rollout:
    return Rollout(name, index, f"{name}{index}", [1], success=success, feedback="no")


class Recorder:
    """A critic that notes what it is asked."""

    def __init__(self) -> None:
        self.calls: list[list[str]] = []

    def critique(self, pairs: Sequence[tuple[Example, Rollout]]) -> list[str | None]:
        self.calls.append([rollout.text for _, rollout in pairs])
        return [None if r.text == "a1" else f"critique of {r.text}" for _, r in pairs]


def test_groups_are_the_rollouts_of_one_example() -> None:
    examples = [example("a"), example("b"), example("a"), example("b")]
    rollouts = [rollout("a", 0), rollout("b", 0), rollout("a", 1, success=True), rollout("b", 1)]
    built = build_batch(contexts.get("sibling_solution"), examples, rollouts)
    assert built[0] is not None
    assert "a1" in built[0][-1]["content"]
    assert built[1:] == [None, None, None]


def test_a_critic_is_asked_once_and_every_row_gets_its_own() -> None:
    critic = Recorder()
    services = Services(critic=critic)
    rollouts = [rollout("a", 0), rollout("a", 1), rollout("b", 0)]
    examples = [example("a"), example("a"), example("b")]
    built = build_batch(contexts.get("step_critique"), examples, rollouts, services)
    assert critic.calls == [["a0", "a1", "b0"]]
    assert built[1] is None
    for row, name in ((0, "a0"), (2, "b0")):
        messages = built[row]
        assert messages is not None
        assert f"critique of {name}" in messages[-1]["content"]
    assert services.counts == {"unusable_critique": 1, "empty": 1}


def test_the_two_lists_must_match() -> None:
    with pytest.raises(ValueError, match="got 1 and 0"):
        build_batch(contexts.get("none"), [example("a")], [])


def test_with_a_group_size_a_problem_may_come_twice() -> None:
    rollouts = [rollout("a", 0), rollout("a", 1, success=True), rollout("a", 0), rollout("a", 1)]
    examples = [example("a")] * 4
    context = contexts.get("sibling_solution")
    prompts = build_prompts(context, examples, rollouts, group_size=2)
    assert [prompt is not None for prompt in prompts] == [True, False, False, False]
    merged = build_prompts(context, examples, rollouts)
    assert [prompt is not None for prompt in merged] == [True, False, True, False]
    for size in (0, 3):
        with pytest.raises(
            ValueError, match=f"divide the 4 rollouts into whole groups, got {size}"
        ):
            build_prompts(context, examples, rollouts, group_size=size)


def test_missing_fields_are_named_with_their_rows() -> None:
    examples = [example(str(i), **({} if i % 2 else {"solution": "s"})) for i in range(20)]
    examples[1] = replace(examples[1], metadata={"row": "train.jsonl, line 2"})
    with pytest.raises(ValueError, match="needs `solution`") as caught:
        validate(examples, contexts.get("reference_solution"))
    message = str(caught.value)
    assert "which 10 of 20 examples lack: train.jsonl, line 2 (id '1'); example 4 (id '3');" in (
        message
    )
    assert message.count("(id ") == 5
    assert "and 5 more" in message


def test_either_field_is_enough_for_a_critique() -> None:
    services = Services(critic=Recorder())
    context = contexts.get("step_critique")
    good = [example("a", answer="1"), example("b", solution="s")]
    assert validate(good, context, services=services) == []
    with pytest.raises(ValueError, match="needs `answer` or `solution`, which 1 of 3"):
        validate([*good, example("c")], context, services=services)


def test_a_solution_of_thinking_only_is_reported() -> None:
    examples = [example("a", solution="<think>x</think>"), example("b", solution="s")]
    with pytest.raises(ValueError, match=r"nothing to show in `solution` of 1 of 2.*\(id 'a'\)"):
        validate(examples, contexts.get("reference_without_thinking"))
    assert validate(examples, contexts.get("reference_solution")) == []


def test_a_solution_over_the_limit_is_reported_before_training() -> None:
    examples = [example("a", solution="one two three"), example("b", solution="one two")]
    services = Services(tokenizer=WordTokenizer(), max_context_tokens=2)
    with pytest.raises(
        ValueError, match=r"1 of 2 examples is longer .* of 2 tokens: example 1 \(id 'a'\), 3 tok"
    ):
        validate(examples, contexts.get("reference_solution"), services=services)
    with pytest.raises(ValueError, match="needs a tokenizer"):
        validate(
            examples, contexts.get("reference_solution"), services=Services(max_context_tokens=2)
        )


def test_without_strict_problems_are_logged_and_returned(
    caplog: pytest.LogCaptureFixture,
) -> None:
    examples = [example("a", hint="h"), example("b")]
    problems = validate(examples, contexts.get("hint"), strict=False)
    assert len(problems) == 1
    assert problems[0] in caplog.text


def test_an_empty_data_set_and_a_missing_critic_always_stop() -> None:
    with pytest.raises(ValueError, match="the data set is empty"):
        validate([], contexts.get("none"), strict=False)
    with pytest.raises(ValueError, match="'step_critique' needs a critic"):
        validate([example("a", answer="1")], contexts.get("step_critique"), strict=False)


@pytest.mark.parametrize("name", ["none", "instruction", "majority_vote"])
def test_contexts_of_unjudged_rollouts_need_nothing_of_the_data(name: str) -> None:
    assert validate([example("a")], contexts.get(name)) == []


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("sibling_solution", {}),
        ("sibling_and_feedback", {}),
        ("contrastive", {}),
        ("contrastive", {"show": "solution"}),
        ("failed_attempt", {}),
        ("reward_phrase", {}),
        ("regeneration", {"of": "sibling"}),
        ("self_reflection", {}),
        ("wrong_answer", {"choose": "sibling"}),
    ],
)
def test_contexts_made_of_verdicts_need_an_answer_to_verify_with(
    name: str, settings: dict[str, str]
) -> None:
    services = sample_services()
    context = contexts.get(name, **settings)
    good = [example(i, answer="4", solution="s") for i in "ab"]
    assert validate(good, context, services=services) == []
    bad = replace(good[1], answer=None, metadata={"row": "miss.jsonl, line 2"})
    with pytest.raises(
        ValueError,
        match=rf"{name}' needs `answer`, which 1 of 2 examples lack: miss.jsonl, line 2 \(id 'b'",
    ):
        validate([good[0], bad], context, services=services)


def test_feedback_comes_from_a_verifier_or_from_the_data() -> None:
    context = contexts.get("verifier_feedback")
    good = [example("a", answer="4"), example("b", feedback="Off by one.")]
    assert validate(good, context) == []
    with pytest.raises(ValueError, match=r"needs `answer` or `feedback`, which 1 of 3 .*id 'c'"):
        validate([*good, example("c")], context)
