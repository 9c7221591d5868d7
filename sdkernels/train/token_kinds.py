"""Kinds of tokens: what is said (`math`), how it is said (`style`), and the rest (`other`).

OPSD (2601.18734 v3) clips its loss per entry because style tokens such as "wait" and "think" have
6 to 15 times the KL of math tokens, and publishes no rule to tell them apart. Ours looks at the
text of one token alone, so that a kind is a property of the vocabulary:

* `math`: it has a digit or one of the signs `+*/=<>^%\\{}_|$` (LaTeX included) or a mathematical
  symbol, or it is a lone minus.
* `style`: it is, case and surrounding blanks and punctuation aside, one of `STYLE_WORDS`.
* `other`: everything else - ordinary words, names, pieces of words, punctuation, control tokens.

A word that the tokenizer splits is judged by its pieces, so rare style words fall under `other`.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any

from sdkernels.train.markers import MARKERS

KINDS = ("math", "style", "other")
MATH, STYLE, OTHER = range(len(KINDS))
# Taking up a thought, hesitating, addressing oneself, and joints between steps.
_WORDS = """
think thinking thought hm okay ok so now well then thus therefore hence because since
but however instead although though yet still first second third next finally again
let lets let's me i i'm i'll we we're we'll us my our need want should would could
probably possibly sure right yes no verify confirm recall remember note
consider suppose assume try step see means oh ah great alright here there
"""
STYLE_WORDS = frozenset([*MARKERS, *_WORDS.split()])
_SIGNS = frozenset("+*/=<>^%\\{}_|$")
_MINUS = ("-", "\N{MINUS SIGN}", "\N{EN DASH}")
_AROUND = " \t\r\n.,:;!?\"'()[]*`\u2026\u2014"


def token_kind(text: str) -> int:
    """Index into `KINDS` of a token with this text."""
    bare = text.strip()
    if bare in _MINUS or any(_is_math(char) for char in bare):
        return MATH
    return STYLE if bare.strip(_AROUND).lower() in STYLE_WORDS else OTHER


def _is_math(char: str) -> bool:
    return char in _SIGNS or char.isdigit() or unicodedata.category(char) == "Sm"


class TokenKinds:
    """Kinds of token ids, each looked up once. Control tokens are `other`."""

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, int] = dict.fromkeys(tokenizer.all_special_ids, OTHER)
        self._known |= dict.fromkeys(getattr(tokenizer, "added_tokens_decoder", {}), OTHER)

    def __call__(self, ids: Sequence[int]) -> list[int]:
        """Index into `KINDS` of each id."""
        for token in set(ids) - self._known.keys():
            self._known[token] = token_kind(self._tokenizer.decode([token]))
        return [self._known[token] for token in ids]
