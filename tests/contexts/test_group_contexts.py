"""Contexts made of other responses to the same problem."""

from dataclasses import replace

import pytest
from helpers.context_rows import build, rollout

from sdkernels import contexts
from sdkernels.contexts import Rollout, TeacherPrompt, build_prompts
from sdkernels.contexts.sample import EXAMPLE, ROLLOUTS

SIBLINGS = ["sibling_solution", "sibling_and_feedback"]


@pytest.mark.parametrize("name", SIBLINGS)
def test_a_sibling_is_not_the_rollout_itself_unless_allowed(name: str) -> None:
    lone = rollout(0, "my own", success=True)
    assert build(name, rollout=lone, group=[lone]) is None
    content = build(name, rollout=lone, group=[lone], allow_self=True)
    assert content is not None
    assert "my own" in content


@pytest.mark.parametrize("name", SIBLINGS)
def test_a_wrong_or_empty_sibling_does_not_count(name: str) -> None:
    group = [
        rollout(0, "wrong", success=False),
        rollout(1, "<think>x</think>", success=True),
    ]
    assert build(name, rollout=group[0], group=group, thinking="strip") is None
    assert build(name, rollout=group[0], group=group, thinking="keep") is not None


@pytest.mark.parametrize("name", SIBLINGS)
def test_which_sibling_is_chosen(name: str) -> None:
    group = [
        rollout(3, "third", success=True, tokens=2),
        rollout(1, "first", success=True, tokens=9),
        rollout(2, "second", success=True, tokens=5),
    ]
    failed = rollout(0, "x", success=False)
    first = build(name, rollout=failed, group=[*group, failed])
    shortest = build(name, rollout=failed, group=group, choose="shortest")
    assert first is not None
    assert "first" in first
    assert shortest is not None
    assert "third" in shortest


def test_the_random_sibling_depends_on_the_seed_and_the_rollout_alone() -> None:
    group = [rollout(i, f"text{i}", success=True) for i in range(1, 7)]

    def choose(seed: int, index: int) -> str | None:
        failed = rollout(index, "x", success=False)
        return build(
            "sibling_solution",
            rollout=failed,
            group=group[::-1] if seed % 2 else group,
            choose="random",
            seed=seed,
        )

    assert [choose(s, 0) for s in range(8)] == [choose(s, 0) for s in range(8)]
    assert len({choose(s, 0) for s in range(20)}) > 2
    assert len({choose(0, 10 + i) for i in range(20)}) > 2
    failed = rollout(0, "x", success=False)
    assert choose(1, 0) == build(
        "sibling_solution", rollout=failed, group=group, choose="random", seed=1
    )


@pytest.mark.parametrize("name", [*SIBLINGS, "contrastive"])
def test_unverified_rollouts_are_an_error(name: str) -> None:
    unverified = rollout(0, "x", success=None)
    with pytest.raises(ValueError, match=r"rollout 0 of example 'sample' has success=None"):
        build(name, rollout=unverified, group=[unverified])


def test_sibling_and_feedback_shows_what_there_is() -> None:
    right = rollout(1, "the right way", success=True, feedback="well done")
    wrong = rollout(0, "x", success=False, feedback="not so")
    silent = rollout(2, "y", success=False)

    def shown(row: Rollout, group: list[Rollout], **settings: str) -> tuple[bool, bool] | None:
        content = build("sibling_and_feedback", rollout=row, group=group, **settings)
        if content is None:
            return None
        return "[correct response]" in content, "[feedback]" in content

    both = [wrong, right]
    assert shown(wrong, both) == (True, True)
    assert shown(wrong, both, feedback="without_sibling") == (True, False)
    assert shown(wrong, [wrong], feedback="without_sibling") == (False, True)
    assert shown(silent, [silent, right]) == (True, False)
    assert shown(silent, [silent]) is None
    assert shown(right, both) is None
    assert shown(right, both, on="all") == (False, True)


def votes(*answers: str | None, success: bool = False) -> list[Rollout]:
    return [
        rollout(i, f"text{i}", success=success, extracted=answer, tokens=9 - i)
        for i, answer in enumerate(answers)
    ]


def test_the_majority_wins_whether_right_or_wrong() -> None:
    group = votes("1", "2", " 2 ", "3")
    content = build("majority_vote", rollout=group[0], group=group)
    assert content is not None
    assert "text1" in content
    shortest = build("majority_vote", rollout=group[0], group=group, choose="shortest")
    assert shortest is not None
    assert "text2" in shortest


@pytest.mark.parametrize("answers", [("29.0", "$29$"), ("1,000", "1000"), ("1/3", "0.333")])
def test_equal_numbers_are_one_vote(answers: tuple[str, str]) -> None:
    for same in (answers, answers[::-1]):
        group = votes("7", *same, "8")
        content = build("majority_vote", rollout=group[0], group=group)
        assert content is not None
        assert "text1" in content


@pytest.mark.parametrize("answers", [("1 3/4", "13/4"), ("29", "290"), ("blue", "green")])
def test_different_answers_are_two_votes(answers: tuple[str, str]) -> None:
    group = votes("7", *answers, "8")
    assert build("majority_vote", rollout=group[0], group=group) is None


def test_a_tie_goes_to_the_answer_that_came_first() -> None:
    group = votes("b", "a", "A", "B")
    content = build("majority_vote", rollout=group[0], group=group[::-1])
    assert content is not None
    assert "text3" in content


def test_without_a_majority_there_is_no_signal() -> None:
    assert build("majority_vote", rollout=ROLLOUTS[0], group=votes("1", "2", "3")) is None
    assert build("majority_vote", rollout=ROLLOUTS[0], group=votes(None, None)) is None
    group = votes("1", "1", "1", "2")
    assert build("majority_vote", rollout=group[3], group=group, min_votes=4) is None
    assert build("majority_vote", rollout=group[3], group=group, min_votes=3) is not None
    alone = votes("1", "2")
    assert build("majority_vote", rollout=alone[0], group=alone, min_votes=1) is None
    unverified = [replace(row, success=None) for row in group]
    assert build("majority_vote", rollout=unverified[3], group=unverified) is not None


def contrast(row: Rollout, group: list[Rollout], **settings: object) -> TeacherPrompt | None:
    context = contexts.get("contrastive", **settings)
    index = [other.index for other in group].index(row.index)
    return build_prompts(context, [EXAMPLE] * len(group), group)[index]


GROUP = [
    rollout(0, "right one", success=True, extracted="29"),
    rollout(1, "wrong a", success=False, extracted="1"),
    rollout(2, "wrong b", success=False, extracted="1"),
    rollout(3, "wrong c", success=False, extracted="3"),
    rollout(4, "right two", success=True, extracted="29"),
]


def shown_in(messages: list[dict[str, str]]) -> str:
    return messages[-1]["content"].split("]\n")[1].split("\n[end")[0]


@pytest.mark.parametrize(
    ("index", "settings", "right", "wrong"),
    [
        (0, {}, "right two", ["wrong a", "wrong b", "wrong c"]),
        (1, {}, "right one", ["wrong b", "wrong c"]),
        (1, {"negatives": 1}, "right one", ["wrong b"]),
        (0, {"show": "answer"}, "29", ["1", "3"]),
        (3, {"show": "answer", "negatives": 4}, "29", ["1"]),
        (
            0,
            {"show": "solution", "thinking": "strip"},
            "Step 1: 3 * 12 = 36 pens bought.\nStep 2: 36 - 7 = 29 pens kept.\nAnswer: 29",
            ["wrong a", "wrong b", "wrong c"],
        ),
    ],
)
def test_the_sides_of_a_contrast(
    index: int, settings: dict[str, object], right: str, wrong: list[str]
) -> None:
    prompt = contrast(GROUP[index], GROUP, **settings)
    assert prompt is not None
    assert shown_in(prompt.messages) == right
    assert [shown_in(negative) for negative in prompt.negatives] == wrong
    for negative, text in zip(prompt.negatives, wrong, strict=True):
        content = prompt.messages[-1]["content"]
        assert negative[-1]["content"] == content.replace(f"]\n{right}\n[", f"]\n{text}\n[")


def test_a_contrast_without_one_of_its_sides_gives_no_signal() -> None:
    assert contrast(GROUP[0], GROUP[:4]) is None  # no other right one
    assert contrast(GROUP[1], GROUP[:2]) is None  # no other wrong one
    assert contrast(GROUP[0], [GROUP[0], GROUP[4]]) is None
    silent = [GROUP[0], replace(GROUP[1], extracted=None)]
    assert contrast(GROUP[0], silent, show="answer") is None
    # Wrong for its form, but the same words as the right answer: no contrast.
    for text in (" 29", "29.0", "$29$"):
        same = [GROUP[0], replace(GROUP[1], extracted=text)]
        assert contrast(GROUP[0], same, show="answer") is None


def test_a_contrast_shows_a_wrong_number_once() -> None:
    group = [GROUP[0], replace(GROUP[1], extracted="1.0"), *GROUP[2:4]]
    prompt = contrast(group[0], group, show="answer")
    assert prompt is not None
    assert [shown_in(negative) for negative in prompt.negatives] == ["1.0", "3"]


def test_what_a_contrast_needs_depends_on_what_it_shows() -> None:
    assert contexts.get("contrastive").needs == ("answer",)
    assert contexts.get("contrastive", show="answer").needs == ("answer",)
    assert contexts.get("contrastive", show="solution", negatives=2).needs == ("answer", "solution")
