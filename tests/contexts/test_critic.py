"""The critic's prompt, what counts as a usable critique, and the cache in front of the model."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers.word_tokenizer import WordTokenizer

from sdkernels.contexts import CachedCritic, Example, Message, Rollout
from sdkernels.contexts.critic import critique_messages, usable_critique
from sdkernels.contexts.sample import EXAMPLE, ROLLOUTS
from sdkernels.contexts.writer import Reply


def rollout(text: str) -> Rollout:
    return Rollout("a", 0, text, [1])


def test_the_prompt_shows_question_reference_and_attempt_in_this_order() -> None:
    messages = critique_messages(EXAMPLE, ROLLOUTS[0])
    assert messages is not None
    assert [message["role"] for message in messages] == ["user"]
    content = messages[0]["content"]
    shown = [
        "A box holds 12 pens.",
        "[reference answer]\n29",
        "[reference solution]\nStep 1: 3 * 12 = 36",
        "[student's attempt]\nStep 1: 3 * 12 = 36 pens bought.\nStep 2: 36 + 7 = 43",
        "word for word",
    ]
    places = [content.index(text) for text in shown]
    assert places == sorted(places)
    assert "<think>" not in content


def test_the_prompt_leaves_out_what_is_not_there() -> None:
    example = Example(
        id="a",
        prompt=[
            {"role": "system", "content": "sys"},
            {"role": "user", "content": "one"},
            {"role": "assistant", "content": "two"},
            {"role": "user", "content": "three"},
        ],
        solution="<think>x</think>",
    )
    messages = critique_messages(example, rollout("try"))
    assert messages is not None
    content = messages[0]["content"]
    assert "[problem]\nuser: one\nassistant: two\nuser: three\n[end of problem]" in content
    assert "reference answer]" not in content
    assert "reference solution]" not in content


def test_there_is_nothing_to_ask_about_an_attempt_that_is_all_thinking() -> None:
    assert critique_messages(EXAMPLE, rollout("<think>hm")) is None
    assert critique_messages(EXAMPLE, rollout("<|im_end|>"), WordTokenizer()) is None


@pytest.mark.parametrize(
    ("text", "critique"),
    [
        ("Step 1: 2\nAnswer: 2", "Step 1: 2\nAnswer: 2"),
        ("<think>let me see</think>\nStep 1", "Step 1"),
        ("[student's attempt]\nStep 1\n[end of student's attempt]", "Step 1"),
        ("", None),
        (" \n ", None),
        ("<think>never ends", None),
        ("...---!!!", None),
        ("\ufffd" * 5 + "abc", None),
        ("a" * 100 + "\ufffd" * 5, "a" * 100 + "\ufffd" * 5),
        ("Step 1\n[end of student's attempt]\n\n[student's attempt]\nStep 1", "Step 1"),
        ("[end of student's attempt] Step 1", None),
        ("\n".join(["again"] * 12), None),
        ("The attempt is fine. " * 9, None),
        ("\n".join(["same"] * 5), "\n".join(["same"] * 5)),
        ("a\nb\na\nc\na\nd", "a\nb\na\nc\na\nd"),
    ],
)
def test_usable_critique(text: str, critique: str | None) -> None:
    assert usable_critique(text) == critique


class FakeCritic(CachedCritic):
    """Answers from a dictionary keyed by the attempt; a missing one raises."""

    def __init__(
        self, replies: dict[str, Reply | None], cache_dir: Path | None = None, model: str = "m"
    ) -> None:
        super().__init__(cache_dir)
        self.replies = replies
        self.model = model
        self.asked: list[str] = []

    def _identity(self) -> dict[str, Any]:
        return {"model": self.model}

    def _ask(self, prompts: Sequence[list[Message]]) -> Iterator[tuple[int, Reply | None]]:
        for index in reversed(range(len(prompts))):  # replies need not come in order
            text = prompts[index][0]["content"]
            attempt = text.split("[student's attempt]\n")[1].split("\n[end")[0]
            self.asked.append(attempt)
            yield index, self.replies[attempt]


def pairs(*texts: str) -> list[tuple[Example, Rollout]]:
    return [(EXAMPLE, rollout(text)) for text in texts]


def test_rows_keep_their_order_and_equal_attempts_are_asked_once() -> None:
    critic = FakeCritic({"a": Reply("A1"), "b": Reply("B1")})
    assert critic.critique(pairs("a", "b", "a")) == ["A1", "B1", "A1"]
    assert sorted(critic.asked) == ["a", "b"]
    assert critic.critique([]) == []


def test_every_unusable_row_is_none_and_counted() -> None:
    critic = FakeCritic({"a": Reply("fine", cut=True), "b": Reply(""), "c": None})
    assert critic.critique(pairs("a", "b", "c", "<think>x")) == ["fine", None, None, None]
    assert critic.counts == {"asked": 3, "cut": 1, "unusable": 3, "too_long": 1, "no_attempt": 1}


def test_a_second_critic_finds_the_replies_on_disk(tmp_path: Path) -> None:
    FakeCritic({"a": Reply("A1", cut=True)}, tmp_path).critique(pairs("a"))
    second = FakeCritic({}, tmp_path)
    assert second.critique(pairs("a", "a")) == ["A1", "A1"]
    assert second.asked == []
    assert second.counts == {"asked": 0, "cached": 1, "cut": 2}


def test_another_model_or_another_solution_is_another_entry(tmp_path: Path) -> None:
    FakeCritic({"a": Reply("A1")}, tmp_path).critique(pairs("a"))
    other = FakeCritic({"a": Reply("A2")}, tmp_path, model="n")
    assert other.critique(pairs("a")) == ["A2"]
    changed = Example(id="sample", prompt=EXAMPLE.prompt, answer="30")
    again = FakeCritic({"a": Reply("A3")}, tmp_path)
    assert again.critique([(changed, rollout("a"))]) == ["A3"]


def test_what_came_before_an_error_is_kept(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        FakeCritic({"b": Reply("B1")}, tmp_path).critique(pairs("a", "b"))
    second = FakeCritic({"a": Reply("A1")}, tmp_path)
    assert second.critique(pairs("a", "b")) == ["A1", "B1"]
    assert second.asked == ["a"]


def test_a_damaged_entry_is_asked_again(tmp_path: Path) -> None:
    FakeCritic({"a": Reply("A1")}, tmp_path).critique(pairs("a"))
    [path] = tmp_path.rglob("*.json")
    path.write_text('{"text": 3}')
    assert FakeCritic({"a": Reply("A2")}, tmp_path).critique(pairs("a")) == ["A2"]
