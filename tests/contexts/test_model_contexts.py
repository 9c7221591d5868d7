"""Contexts whose text a model writes first."""

from collections.abc import Sequence
from dataclasses import replace

import pytest
from helpers.context_rows import build, rollout
from helpers.word_tokenizer import WordTokenizer

from sdkernels import contexts
from sdkernels.contexts import Context, Message, Rollout, Services, TeacherPrompt, build_prompts
from sdkernels.contexts.sample import EXAMPLE, ROLLOUTS

NAMES = ["regeneration", "rationalise", "self_reflection"]


class Writing:
    """A writer that notes what it is asked and always answers the same."""

    def __init__(self, text: str | None) -> None:
        self.text = text
        self.asked: list[str] = []
        self.calls = 0

    def write(self, prompts: Sequence[list[Message]]) -> list[str | None]:
        self.calls += 1
        self.asked += [messages[-1]["content"] for messages in prompts]
        return [self.text for _ in prompts]


def prompts(
    context: Context, group: list[Rollout], services: Services
) -> list[TeacherPrompt | None]:
    return build_prompts(context, [EXAMPLE] * len(group), group, services)


@pytest.mark.parametrize("name", NAMES)
def test_it_needs_somebody_who_writes(name: str) -> None:
    class OnlyCritic:
        def critique(self, pairs: object) -> list[str | None]:
            return []

    for services in (Services(), Services(critic=OnlyCritic())):
        with pytest.raises(ValueError, match=f"{name!r} needs a model to write with"):
            contexts.get(name)(EXAMPLE, ROLLOUTS[0], ROLLOUTS, services)
        with pytest.raises(ValueError, match=f"{name!r} needs a model to write with"):
            contexts.validate([EXAMPLE], contexts.get(name), services=services)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("answer", [None, "", " \n"])
def test_an_empty_answer_gives_no_signal_and_is_counted(name: str, answer: str | None) -> None:
    services = Services(writer=Writing(answer))
    assert contexts.get(name)(EXAMPLE, ROLLOUTS[0], ROLLOUTS, services) is None
    assert services.counts == {"unwritten": 1, "empty": 1}


@pytest.mark.parametrize("name", NAMES)
def test_a_batch_is_asked_at_once_and_gives_what_single_rows_give(name: str) -> None:
    text = "<quote>36 + 7 = 43</quote><why>an idea</why>"
    writer = Writing(text)
    built = prompts(contexts.get(name), ROLLOUTS, Services(writer=writer))
    assert writer.calls == 1
    assert len(writer.asked) == len(ROLLOUTS)
    for row, prompt in zip(ROLLOUTS, built, strict=True):
        alone = contexts.get(name)(EXAMPLE, row, ROLLOUTS, Services(writer=Writing(text)))
        assert prompt is not None
        assert prompt.messages == alone


def test_the_writer_of_a_regeneration_sees_the_solution_and_the_teacher_what_it_wrote() -> None:
    writer = Writing("<think>hm</think>my own words")
    context = contexts.get("regeneration", thinking="strip")
    messages = context(EXAMPLE, ROLLOUTS[0], ROLLOUTS, Services(writer=writer))
    assert messages is not None
    reference = contexts.get("reference_solution")(EXAMPLE, ROLLOUTS[0])
    assert reference is not None
    assert writer.asked == [reference[-1]["content"]]
    content = messages[-1]["content"]
    assert "[reference solution]\nmy own words\n[end" in content
    assert "36 - 7" not in content


def test_a_regeneration_can_start_from_a_sibling() -> None:
    writer = Writing("new")
    context = contexts.get("regeneration", of="sibling", choose="shortest")
    assert context.needs == ("answer",)
    assert contexts.get("regeneration").needs == ("solution",)
    built = prompts(context, ROLLOUTS, Services(writer=writer))
    assert all(prompt is not None for prompt in built)
    assert "3 * 12 - 7 = 29" in writer.asked[0]
    wrong = [ROLLOUTS[0], ROLLOUTS[3]]
    services = Services(writer=writer)
    assert prompts(context, wrong, services) == [None, None]
    assert services.counts == {"empty": 2}


def test_an_analysis_stands_after_the_solution_it_is_about() -> None:
    writer = Writing("<think>x</think>the idea is to count")
    context = contexts.get("rationalise", thinking="strip")
    messages = context(EXAMPLE, ROLLOUTS[0], [], Services(writer=writer))
    assert messages is not None
    content = messages[-1]["content"]
    assert content.index("[reference solution]") < content.index("[analysis]\nthe idea is to count")
    assert "<think>" not in content + writer.asked[0]
    assert "Do not solve the problem again" in writer.asked[0]
    only_thoughts = Services(writer=Writing("<think>x</think>"))
    assert context(EXAMPLE, ROLLOUTS[0], [], only_thoughts) is None


def reflect(row: Rollout, group: list[Rollout], text: str) -> tuple[TeacherPrompt | None, Services]:
    services = Services(writer=Writing(text))
    index = [other.index for other in group].index(row.index)
    return prompts(contexts.get("self_reflection"), group, services)[index], services


def test_a_wrong_response_gets_an_explanation_and_the_quote_of_its_error() -> None:
    text = "<quote>36 + 7 = 43</quote>\n<why>take away, don't add</why>"
    prompt, services = reflect(ROLLOUTS[0], ROLLOUTS[:2], text)
    assert prompt is not None
    assert prompt.error_quote == "36 + 7 = 43"
    content = prompt.messages[-1]["content"]
    assert "[key idea]\ntake away, don't add\n[end of key idea]" in content
    assert "29" not in content
    asked = services.the_writer().asked  # type: ignore[union-attr]
    assert "[reference answer]\n29" in asked[0]
    assert "[correct response]\nThere are 36 pens." in asked[0]
    assert "<quote>" in asked[0]


def test_a_right_response_gets_an_explanation_alone() -> None:
    text = "<quote>There are 36 pens.</quote><why>it works</why>"
    prompt, services = reflect(ROLLOUTS[1], ROLLOUTS[:2], text)
    assert prompt is not None
    assert prompt.error_quote is None
    asked = services.the_writer().asked  # type: ignore[union-attr]
    assert "<quote>" not in asked[1]
    assert "correct response]" not in asked[1]


def test_a_quote_that_is_not_there_is_counted_and_an_explanation_is_a_must() -> None:
    prompt, services = reflect(ROLLOUTS[0], ROLLOUTS[:2], "<quote>nowhere</quote><why>w</why>")
    assert prompt is not None
    assert prompt.error_quote is None
    assert services.counts["quote_not_found"] == 1
    prompt, services = reflect(ROLLOUTS[0], ROLLOUTS[:2], "<quote>36 + 7</quote> no reason")
    assert prompt is None
    assert services.counts["unusable_reflection"] == 2


def test_a_group_without_success_is_left_out_unless_allowed() -> None:
    group = [ROLLOUTS[0], ROLLOUTS[3]]
    writer = Writing("<why>w</why>")
    services = Services(writer=writer)
    assert prompts(contexts.get("self_reflection"), group, services) == [None, None]
    assert writer.asked == []
    context = contexts.get("self_reflection", need_success=False)
    assert all(prompts(context, group, services))
    lone = [replace(ROLLOUTS[1], index=0)]
    assert all(prompts(contexts.get("self_reflection"), lone, services))
    thoughts = [rollout(0, "<think>cut off", success=False)]
    assert prompts(context, thoughts, services) == [None]


def test_what_the_writer_sees_is_cut_at_the_same_limit_but_not_counted() -> None:
    writer = Writing("short")
    services = Services(writer=writer, tokenizer=WordTokenizer(), max_context_tokens=3)
    assert contexts.get("regeneration")(EXAMPLE, ROLLOUTS[0], [], services) is not None
    assert "[... cut here" in writer.asked[0]
    assert services.counts["truncated"] == 0


def test_the_sample_shows_all_three() -> None:
    assert all(build(name) is not None for name in NAMES)
