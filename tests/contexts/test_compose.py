"""The shape of teacher prompts, and how too long ones are cut."""

import logging
from collections import Counter

import pytest
from helpers.word_tokenizer import SlowWordTokenizer, WordTokenizer

from sdkernels.contexts.compose import (
    Privileged,
    Section,
    compose,
    fit,
    without_special_tokens,
)

PROMPT = [
    {"role": "system", "content": "be brief"},
    {"role": "user", "content": "one"},
    {"role": "assistant", "content": "two"},
    {"role": "user", "content": "the question \n"},
]
SHORT = Section("intro", "feedback", "wrong again")
LONG = Section("intro", "attempt", "a b c d e f g h")


def test_order_is_question_sections_closing_and_other_turns_are_kept() -> None:
    messages = compose(PROMPT, Privileged((LONG, SHORT), "closing"))
    assert messages[:3] == PROMPT[:3]
    content = messages[-1]["content"]
    parts = ["the question", "[attempt]", "[end of attempt]", "[feedback]", "closing"]
    places = [content.index(part) for part in parts]
    assert places == sorted(places)
    assert content.startswith("the question\n\nintro\n[attempt]\na b")
    assert content.endswith("\n\nclosing")


def test_without_sections_the_prompt_is_equal_but_not_the_same_object() -> None:
    messages = compose(PROMPT, Privileged())
    assert messages == PROMPT
    messages[-1]["content"] = "changed"
    assert PROMPT[-1]["content"] == "the question \n"


def test_a_closing_alone_follows_the_question_also_under_a_limit() -> None:
    messages = compose(
        PROMPT, Privileged(closing="closing"), tokenizer=WordTokenizer(), max_tokens=1
    )
    assert messages[-1]["content"] == "the question\n\nclosing"


def test_without_the_question_only_system_messages_stay() -> None:
    messages = compose(PROMPT, Privileged((SHORT,), "closing", question=False))
    assert [message["role"] for message in messages] == ["system", "user"]
    assert messages[-1]["content"].startswith("intro\n[feedback]")


def test_special_tokens_of_the_text_are_removed_even_when_nested() -> None:
    tokenizer = WordTokenizer()
    assert without_special_tokens("a<|im_end|>b<|im_<|im_end|>start|>c", tokenizer) == "abc"
    assert without_special_tokens("a<|im_end|>b", None) == "a<|im_end|>b"
    messages = compose(PROMPT, Privileged((Section("i", "l", "<|im_end|>x"),)), tokenizer=tokenizer)
    assert "<|im_end|>" not in messages[-1]["content"]


@pytest.mark.parametrize("tokenizer", [WordTokenizer(), SlowWordTokenizer()])
def test_the_end_of_the_longest_section_is_cut_visibly(tokenizer: WordTokenizer) -> None:
    counts: Counter[str] = Counter()
    messages = compose(
        PROMPT, Privileged((LONG, SHORT), "c"), tokenizer=tokenizer, max_tokens=5, counts=counts
    )
    content = messages[-1]["content"]
    assert "[attempt]\na b c\n[... cut here, 5 more tokens]\n[end of attempt]" in content
    assert "wrong again" in content
    assert content.startswith("the question")
    assert counts == {"truncated": 1}


def test_what_fits_exactly_is_not_cut() -> None:
    sections, cut = fit((LONG, SHORT), WordTokenizer(), 10)
    assert sections == (LONG, SHORT)
    assert not cut


def test_a_budget_below_the_shorter_section_empties_the_longer_one(
    caplog: pytest.LogCaptureFixture,
) -> None:
    with caplog.at_level(logging.INFO):
        sections, cut = fit((LONG, SHORT), WordTokenizer(), 1)
    assert cut
    assert sections[0].text == "[... cut here, 8 more tokens]"
    assert sections[1].text == "wrong\n[... cut here, 1 more tokens]"
    assert "cut 8 tokens off the end of the attempt" in caplog.text


@pytest.mark.parametrize(
    ("lengths", "limit", "kept"),
    [
        ((8, 6), 10, (5, 5)),  # and not 4 and 6
        ((8, 6), 5, (2, 3)),  # the rest goes to the shorter one
        ((2, 9, 8), 10, (2, 4, 4)),
        ((7, 7), 4, (2, 2)),
        ((8, 1, 3), 6, (2, 1, 3)),
        ((8, 0), 3, (3, 0)),
        ((4, 4, 4), 12, (4, 4, 4)),
    ],
)
def test_cut_sections_come_out_equally_long(
    lengths: tuple[int, ...], limit: int, kept: tuple[int, ...]
) -> None:
    sections = [Section("i", "l", " ".join("w" * length)) for length in lengths]
    fitted, cut = fit(sections, WordTokenizer(), limit)
    assert tuple(section.text.split("[...")[0].count("w") for section in fitted) == kept
    assert cut == (sum(lengths) > limit)
    for section, length, keep in zip(fitted, lengths, kept, strict=True):
        assert (f"{length - keep} more tokens" in section.text) == (keep < length)


def test_a_limit_needs_a_tokenizer_and_must_be_positive() -> None:
    with pytest.raises(ValueError, match="max_context_tokens needs a tokenizer"):
        fit((LONG,), None, 5)
    with pytest.raises(ValueError, match="must be at least 1, got 0"):
        fit((LONG,), WordTokenizer(), 0)
