"""Counting epistemic markers as published and by whole words, and flagging tokens."""

import random
import re

import pytest

from sdkernels.train.markers import MARKERS, count_markers, marker_flags, marker_stats


def test_the_ten_markers_of_the_paper() -> None:
    assert len(MARKERS) == len(set(MARKERS)) == 10


@pytest.mark.parametrize(
    ("text", "word", "substring"),
    [
        ("Wait, maybe not.", {"wait": 1, "maybe": 1}, {"wait": 1, "maybe": 1}),
        ("It is unlikely", {}, {"likely": 1}),
        ("I checked while awaiting", {}, {"check": 1, "wait": 1}),
        ("Hmm. Hmmmm... hm", {"hmm": 2}, {"hmm": 2}),
        ("LIKELY likely Likely", {"likely": 3}, {"likely": 3}),
        ("wait-wait wait_wait", {"wait": 2}, {"wait": 4}),
        ("almighty might", {"might": 1}, {"might": 2}),
        ("", {}, {}),
    ],
)
def test_count_markers(text: str, word: dict[str, int], substring: dict[str, int]) -> None:
    found = {mode: count_markers(text, mode=mode) for mode in ("word", "substring")}  # type: ignore[arg-type]
    assert set(found["word"]) == set(MARKERS)
    assert {m: n for m, n in found["word"].items() if n} == word
    assert {m: n for m, n in found["substring"].items() if n} == substring


def test_the_substring_count_is_that_of_ten_separate_searches() -> None:
    rng = random.Random(0)
    pieces = [*MARKERS, "un", "ed", " ", "m", "w", "s", "Check"]
    for _ in range(200):
        text = "".join(rng.choice(pieces) for _ in range(20))
        expected = {marker: text.lower().count(marker) for marker in MARKERS}
        assert count_markers(text, mode="substring") == expected


def test_the_rates() -> None:
    stats = marker_stats(["wait maybe two words", "none here"], [30, 10])
    assert stats.total == 2
    assert stats.by_marker["wait"] == 1
    assert stats.per_response == 1.0
    assert stats.per_1k_tokens == 50.0
    assert stats.per_word == pytest.approx(2 / 6)


def test_rates_of_nothing_are_none_not_zero() -> None:
    stats = marker_stats([], [])
    assert (stats.per_response, stats.per_1k_tokens, stats.per_word) == (None, None, None)
    assert marker_stats([""], [0]).per_response == 0.0


def test_lengths_must_match() -> None:
    with pytest.raises(ValueError, match="got 1 and 2"):
        marker_stats(["a"], [1, 2])


def test_flags_cover_markers_that_span_tokens() -> None:
    tokens = ["So", " w", "", "ait", ",", " may", "be", "", " un", "likely", " check", "ed"]
    assert marker_flags(tokens) == [t in (" w", "ait", " may", "be") for t in tokens]
    flags = marker_flags(tokens, mode="substring")
    assert [t for t, flag in zip(tokens, flags, strict=True) if flag] == [
        " w",
        "ait",
        " may",
        "be",
        "likely",
        " check",
    ]


def test_flags_of_letters_that_grow_in_lower_case() -> None:
    assert marker_flags(["İİİİ", " wait", " x"]) == [False, True, False]


def test_flags_agree_with_counts_when_a_token_is_a_word() -> None:
    text = "Hmm, maybe I should check; that seems likely, wait: alternatively 3."
    tokens = re.findall(r"\W*\w+\W*", text)
    assert sum(marker_flags(tokens)) == sum(count_markers(text).values()) == 7


def test_no_tokens_no_flags() -> None:
    assert marker_flags([]) == []


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(ValueError, match="mode must be 'word' or 'substring', got 'regex'"):
        count_markers("x", mode="regex")  # type: ignore[arg-type]
