"""What the builders share."""

from dataclasses import replace

import pytest
from helpers.context_rows import rollout
from helpers.word_tokenizer import WordTokenizer

from sdkernels import contexts
from sdkernels.contexts import Example, Services
from sdkernels.contexts.sample import EXAMPLE, OTHER, ROLLOUTS, CannedCritic
from sdkernels.contexts.words import WAS_WRONG, clean, feedback_of, pick, siblings


def test_clean() -> None:
    assert clean(None, None) == ""
    assert clean(" <think>a</think> b ", None) == "<think>a</think> b"
    assert clean(" <think>a</think> b ", None, "strip") == "b"
    assert clean(" <think>a</think> <|im_end|> \n", WordTokenizer(), "strip") == ""


def test_siblings_are_sorted_verified_and_visible() -> None:
    group = [
        rollout(2, "c", success=True),
        rollout(0, "a", success=True),
        rollout(1, "b", success=False),
        rollout(3, "<think>d</think>", success=True),
    ]

    def indices(success: bool, **settings: object) -> list[int]:
        found = siblings(group[1], group, "x", tokenizer=None, success=success, **settings)  # type: ignore[arg-type]
        return [other.index for other in found]

    assert indices(True) == [2, 3]
    assert indices(True, thinking="strip") == [2]
    assert indices(True, allow_self=True) == [0, 2, 3]
    assert indices(False) == [1]


def test_pick_of_nothing_is_nothing() -> None:
    for choose in ("first", "random", "shortest"):
        row = rollout(0, "a", success=True)
        assert pick([], choose, seed=0, example=EXAMPLE, rollout=row) is None


def test_the_rollouts_own_feedback_comes_first() -> None:
    assert feedback_of(rollout(0, "a", success=False, feedback=" own "), EXAMPLE, None) == "own"
    assert feedback_of(rollout(0, "a", success=False), EXAMPLE, None) == ""


END = " <|im_end|>\n"  # nothing but a control token
EMPTY = dict.fromkeys(("answer", "solution", "stronger_solution", "hint", "feedback"), END)


class Says:
    """A critic and writer that says one thing."""

    def __init__(self, text: str) -> None:
        self.text = text

    def critique(self, pairs: list[object]) -> list[str | None]:
        return [self.text for _ in pairs]

    write = critique


def services(**changes: object) -> Services:
    settings = {"critic": CannedCritic(), "pool": [EXAMPLE, OTHER]} | changes
    return Services(tokenizer=WordTokenizer(), **settings)  # type: ignore[arg-type]


def last_turn(
    name: str, example: Example, group: list[contexts.Rollout], given: Services
) -> str | None:
    messages = contexts.get(name)(example, group[0], group, given)
    return None if messages is None else messages[-1]["content"]


@pytest.mark.parametrize("name", contexts.names())
def test_texts_of_control_tokens_alone_give_no_signal(name: str) -> None:
    example = replace(EXAMPLE, **EMPTY)
    group = [replace(r, text=END, feedback=END, extracted=END) for r in ROLLOUTS]
    given = services(critic=Says(END), pool=[example, replace(OTHER, solution=END)])
    assert (last_turn(name, example, group, given) is None) == (
        contexts.get(name).made_of != "nothing"
    )


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("step_critique", END),
        ("regeneration", END),
        ("rationalise", END),
        ("self_reflection", f"<why>{END}</why>"),
    ],
)
def test_a_model_that_writes_control_tokens_alone_gives_no_signal(name: str, said: str) -> None:
    assert last_turn(name, EXAMPLE, ROLLOUTS, services(critic=Says(said))) is None


def test_what_stands_beside_a_text_of_control_tokens_is_shown_alone() -> None:
    wrong, right, other_right, _ = ROLLOUTS
    silent = replace(right, text=END)

    said = last_turn("sibling_and_feedback", EXAMPLE, [wrong, silent], services())
    assert said is not None
    assert "[correct response]" not in said
    assert "read as `43`" in said

    said = last_turn("sibling_solution", EXAMPLE, [wrong, silent, other_right], services())
    assert said is not None
    assert other_right.text in said

    said = last_turn("failed_attempt", EXAMPLE, [replace(wrong, feedback=END)], services())
    assert said is not None
    assert WAS_WRONG in said

    silent_question = replace(OTHER, prompt=[{"role": "user", "content": END}])
    assert last_turn("demonstration", EXAMPLE, ROLLOUTS, services(pool=[silent_question])) is None
