"""Contexts made of the data set's fields, or of nothing."""

import re
from dataclasses import replace

import pytest
from helpers.context_rows import build, rollout

from sdkernels import contexts
from sdkernels.contexts import Example, Services, validate
from sdkernels.contexts.data_contexts import changed_answer
from sdkernels.contexts.sample import EXAMPLE, OTHER, ROLLOUTS, sample_services
from sdkernels.train.verify import verify


def test_none_is_the_prompt_of_the_student_also_with_a_system_message() -> None:
    prompt = [{"role": "system", "content": "s "}, {"role": "user", "content": " q\n"}]
    example = Example(id="a", prompt=prompt, answer="1", solution="2", hint="3", feedback="4")
    services = Services(max_context_tokens=1)
    assert contexts.get("none")(example, ROLLOUTS[0], ROLLOUTS, services) == prompt


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("final_answer", {"answer": None}),
        ("wrong_answer", {"answer": " "}),
        ("reference_solution", {"solution": "  "}),
        ("reference_without_thinking", {"solution": None}),
        ("reference_without_thinking", {"solution": "<think>only thoughts</think>"}),
        ("reference_only", {"solution": None}),
        ("stronger_solution", {"stronger_solution": None}),
        ("hint", {"hint": ""}),
    ],
)
def test_without_the_field_there_is_no_signal(name: str, fields: dict[str, str | None]) -> None:
    assert build(name, replace(EXAMPLE, **fields)) is None  # type: ignore[arg-type]


def test_reference_with_and_without_thinking_differ_in_the_thinking_only() -> None:
    with_it, without = build("reference_solution"), build("reference_without_thinking")
    assert with_it is not None
    assert without is not None
    start, end = with_it.index("<think>"), with_it.index("</think>\n") + len("</think>\n")
    assert with_it[:start] + with_it[end:] == without


def test_a_stronger_solution_is_not_the_data_sets_own() -> None:
    content = build("stronger_solution")
    assert content is not None
    assert "Three boxes of twelve pens" in content
    assert "<think>" in content
    assert "Step 2" not in content
    stripped = build("stronger_solution", thinking="strip")
    assert stripped is not None
    assert "<think>" not in stripped


def test_the_two_instructions_differ_and_know_nothing() -> None:
    concise, detailed = build("instruction"), build("instruction", style="detailed")
    assert concise is not None
    assert detailed is not None
    assert concise != detailed
    assert "[" not in concise + detailed


def test_a_wrong_answer_is_wrong_and_stands_in_the_words_of_the_right_one() -> None:
    wrong, right = build("wrong_answer"), build("final_answer")
    assert wrong is not None
    assert right is not None
    assert wrong != right
    shown = wrong.split("[known answer]\n")[1].split("\n")[0]
    assert wrong.replace(f"[known answer]\n{shown}", "[known answer]\n29") == right


@pytest.mark.parametrize("right", ["29", "-7", "3.14", "1/2", r"\frac{3}{10}", "x^2 + 5", "(C)"])
def test_a_changed_answer_differs_and_keeps_its_form(right: str) -> None:
    found = {changed_answer(right, str(seed)) for seed in range(40)}
    assert right not in found
    assert len(found) > 2
    for answer in found:
        assert re.sub("[0-9A-D]+", "#", answer) == re.sub("[0-9A-D]+", "#", right)
    assert changed_answer(right, "7") == changed_answer(right, "7")


@pytest.mark.parametrize(
    "right",
    ["2.1", "-0.1", "1,234.1", "0/5", "0e5", "3.14159265", "1234567.8", "0.123456789", "10.1%"],
)
def test_a_changed_answer_is_wrong_by_value(right: str) -> None:
    for seed in range(40):
        assert not verify(
            f"Answer: {changed_answer(right, str(seed))}",
            replace(EXAMPLE, answer=right, task="number"),
        ).correct


def test_no_wrong_answer_has_the_value_of_the_right_one() -> None:
    example = replace(EXAMPLE, answer="4")
    assert build("wrong_answer", example, choose="fixed", fixed="4.0") is None
    group = [
        rollout(0, "x", success=False, extracted="7"),
        rollout(1, "x", success=False, extracted="4.0"),  # wrong for its form only
    ]
    assert build("wrong_answer", example, group[0], group, choose="sibling") is None
    group.append(rollout(2, "x", success=False, extracted="5"))
    content = build("wrong_answer", example, group[0], group, choose="sibling")
    assert content is not None
    assert "[known answer]\n5\n" in content


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"choose": "fixed", "fixed": "29"}, "no answer, or fixed='29' is right: weight 0"),
        ({"fixed": "blue"}, "no answer, or nothing in it to change and fixed='blue' is right: w"),
        ({"choose": "sibling"}, "no answer, or no wrong response with an answer: weight 0"),
    ],
)
def test_the_reason_for_no_signal_is_that_of_the_settings(
    settings: dict[str, str], reason: str
) -> None:
    assert contexts.get("wrong_answer", **settings).on_empty.startswith(reason)
    if settings.get("fixed") == "29":
        assert reason in contexts.render_sample("wrong_answer", **settings)
        with pytest.raises(ValueError, match=re.escape(reason)):
            contexts.validate([EXAMPLE], contexts.get("wrong_answer", **settings))


def test_where_nothing_can_be_changed_the_fixed_answer_stands_in() -> None:
    example = replace(EXAMPLE, answer="blue")
    content = build("wrong_answer", example, fixed="42")
    assert content is not None
    assert "[known answer]\n42\n" in content
    assert build("wrong_answer", replace(EXAMPLE, answer="42"), choose="fixed", fixed="42") is None


def test_a_siblings_wrong_answer_is_that_of_a_wrong_sibling() -> None:
    group = [
        rollout(0, "x", success=False, extracted="1"),
        rollout(1, "x", success=True, extracted="29"),
        rollout(2, "x", success=False, extracted=None),
        rollout(3, "x", success=False, extracted="13"),
    ]
    content = build("wrong_answer", rollout=group[0], group=group, choose="sibling")
    assert content is not None
    assert "[known answer]\n13\n" in content
    assert build("wrong_answer", rollout=group[3], group=group[1:], choose="sibling") is None


def test_reference_only_shows_no_question_and_keeps_the_system_message() -> None:
    prompt = [
        {"role": "system", "content": "sys"},
        {"role": "user", "content": "earlier question"},
        {"role": "assistant", "content": "earlier answer"},
        {"role": "user", "content": "the question"},
    ]
    example = replace(EXAMPLE, prompt=prompt)
    messages = contexts.get("reference_only", thinking="strip")(example, ROLLOUTS[0], [])
    assert messages is not None
    assert [message["role"] for message in messages] == ["system", "user"]
    assert "question" not in messages[1]["content"]
    assert messages[1]["content"].startswith("Here is a correct solution")
    assert "<think>" not in messages[1]["content"]
    assert example.prompt == prompt


def test_a_demonstration_is_of_another_problem_and_depends_on_the_example_and_the_seed() -> None:
    content = build("demonstration")
    assert content is not None
    assert OTHER.prompt[-1]["content"] in content
    assert "8 * 40 = 320" in content
    assert (EXAMPLE.solution or "")[-40:] not in content
    pool = [
        Example(id=f"p{i}", prompt=[{"role": "user", "content": f"q{i}"}], solution=f"solution{i}")
        for i in range(30)
    ]

    def shown(example: Example, seed: int) -> str:
        context = contexts.get("demonstration", seed=seed)
        messages = context(example, ROLLOUTS[0], [], Services(pool=pool))
        assert messages is not None
        return messages[-1]["content"].split("[its solution]\n")[1].split("\n")[0]

    assert len({shown(example, 0) for example in pool}) > 10
    assert len({shown(pool[0], seed) for seed in range(20)}) > 5
    assert all(shown(example, 3) != example.solution for example in pool)
    assert shown(pool[4], 1) == shown(pool[4], 1)


def test_a_demonstration_needs_another_problem_before_training() -> None:
    context = contexts.get("demonstration")
    with pytest.raises(ValueError, match=r"Services\(pool=examples\)"):
        context(EXAMPLE, ROLLOUTS[0])
    with pytest.raises(ValueError, match=r"nothing to show in `solution` of 1 of 1.*no other prob"):
        validate([EXAMPLE], context, services=Services(pool=[EXAMPLE]))
    twin = replace(EXAMPLE, id="twin")
    assert context(EXAMPLE, ROLLOUTS[0], [], Services(pool=[EXAMPLE, twin])) is None
    assert validate([EXAMPLE, OTHER], context, services=sample_services()) == []
