"""Epistemic markers: words by which a response shows uncertainty (2603.24472 section 3).

The published count matches lower-cased substrings, so that "unlikely", "checked" and "awaiting"
count too. `mode="substring"` reproduces it; `mode="word"`, the default, counts whole words only.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Literal

MARKERS = (
    "wait",
    "hmm",
    "perhaps",
    "maybe",
    "actually",
    "alternatively",
    "seems",
    "might",
    "likely",
    "check",
)

Mode = Literal["word", "substring"]

# No marker is part of another one, so one alternation finds what ten searches would. A whole-word
# "hmm" may be drawn out ("hmmmm").
_PATTERNS = {
    "substring": re.compile("|".join(MARKERS)),
    "word": re.compile(
        r"(?<!\w)(?:" + "|".join("hmm+" if m == "hmm" else m for m in MARKERS) + r")(?!\w)"
    ),
}


@dataclass(frozen=True)
class MarkerStats:
    """Marker counts of a set of responses; the rates are None where they would divide by 0."""

    total: int
    by_marker: dict[str, int]
    per_response: float | None
    per_1k_tokens: float | None
    per_word: float | None


def count_markers(text: str, *, mode: Mode = "word") -> dict[str, int]:
    """How often each of the ten markers occurs in `text`, upper or lower case."""
    counts = dict.fromkeys(MARKERS, 0)
    lowered = text.lower()
    for start, end in _spans(lowered, mode):
        found = lowered[start:end]
        counts["hmm" if found.startswith("hmm") else found] += 1
    return counts


def marker_stats(
    texts: Sequence[str], num_tokens: Sequence[int], *, mode: Mode = "word"
) -> MarkerStats:
    """Counts over several responses, `num_tokens[i]` being the length of `texts[i]` in tokens."""
    if len(texts) != len(num_tokens):
        raise ValueError(
            f"texts and num_tokens must be as long as each other, "
            f"got {len(texts)} and {len(num_tokens)}"
        )
    by_marker = dict.fromkeys(MARKERS, 0)
    for text in texts:
        for marker, count in count_markers(text, mode=mode).items():
            by_marker[marker] += count
    total = sum(by_marker.values())
    words = sum(len(text.split()) for text in texts)
    tokens = sum(num_tokens)
    return MarkerStats(
        total=total,
        by_marker=by_marker,
        per_response=total / len(texts) if texts else None,
        per_1k_tokens=1000 * total / tokens if tokens else None,
        per_word=total / words if words else None,
    )


def marker_flags(token_texts: Sequence[str], *, mode: Mode = "word") -> list[bool]:
    """For each token of one response, whether it holds a part of a marker.

    `token_texts` are the decoded tokens; joined they make the response.
    """
    # Lower-casing a letter may change its length, so it comes before the offsets.
    lowered = [text.lower() for text in token_texts]
    ends = list(accumulate(map(len, lowered)))
    flags = [False] * len(lowered)
    for start, end in _spans("".join(lowered), mode):
        index = bisect_right(ends, start)
        while index < len(ends) and ends[index] - len(lowered[index]) < end:
            flags[index] = flags[index] or bool(lowered[index])
            index += 1
    return flags


def _spans(lowered: str, mode: Mode) -> Iterator[tuple[int, int]]:
    if mode not in _PATTERNS:
        raise ValueError(f"mode must be 'word' or 'substring', got {mode!r}")
    return (match.span() for match in _PATTERNS[mode].finditer(lowered))
