"""Numbers in answers: reading one, and comparing two by value, as the verifier does.

Nothing here evaluates text: numbers are matched by a regular expression and built digit by digit.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from itertools import islice
from typing import NamedTuple

MAX_ANSWER_CHARS = 1_000
MAX_DIGITS = 400

WRAPPING = " \t\r\n*_`\"'“”‘’"
NUMBER = re.compile(
    r"""(?P<sign>(?<![\w)])[-+])?[ ]?[$€£¥]?[ ]?
        (?:(?P<mixed>\d+)[ ]{1,2}(?=\d+/\d))?
        (?:(?P<whole>\d{1,3}(?:[,\u00a0\u202f\u2009]\d{3})+(?!\d)|\d+)(?P<decimals>\.\d+)?
           |(?P<bare>\.\d+))
        (?:[eE](?P<exponent>[-+]?\d{1,3})(?!\d))?
        (?:[ ]?/[ ]?(?P<denominator>\d+))?""",
    re.VERBOSE | re.ASCII,
)
_FRAC = re.compile(r"\\[dt]?frac\s?(?:\{\s?(-?\d+)\s?\}\{\s?(\d+)\s?\}|(\d)(\d))", re.ASCII)
LATEX_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s?\{([^{}]*)\}")
# After the number: an operator makes it a part of something else, and so do a power and a variable.
_CONTINUES = re.compile(r"[ ]?[-/*^+(]|[²³¹⁰-⁹]|[a-zA-Z](?![a-zA-Z])")
_UNITS_OF_ONE_LETTER = set("mgshlLkKWVAJNC")
_FORBIDDEN = re.compile(r"[\d*^+<>\\{}]|\bnot\b|n't", re.IGNORECASE)


class Number(NamedTuple):
    """A parsed number. `decimals`: digits after the point, 0 for integers and fractions."""

    value: Fraction
    percent: bool
    decimals: int


def parse_number(text: str) -> Number | None:
    r"""The one number that `text` states, or None.

    Understood are signs, thousands separators, decimals, `1e-5`, `3/4`, `1 3/4`, `\frac{3}{4}`,
    percent, currency signs, units and words around it, `x = 5` (the right side counts), and the
    decimal digits of any script. None where there is no number or more than one, where an operator,
    a variable or a "not" goes with it, and for nan, inf, a zero denominator or over 400 digits.
    """
    text = plain_number(text[: MAX_ANSWER_CHARS + 1])
    if len(text) > MAX_ANSWER_CHARS:
        return None
    text = text.rsplit("=", 1)[-1]
    matches = list(islice(NUMBER.finditer(text), 2))
    if len(matches) != 1:
        return None
    match = matches[0]
    follows = _CONTINUES.match(text, match.end())
    if follows and follows.group() not in _UNITS_OF_ONE_LETTER:
        return None
    if _FORBIDDEN.search(f"{text[: match.start()]} {text[match.end() :]}"):
        return None
    return _build(match, percent="%" in text[match.end() :])


def same_number(answer: Number, reference: Number) -> bool:
    """Whether the two are equal, an integer or fraction reference exactly.

    A decimal reference allows a relative error of 1e-6, and with three or more decimals also
    rounding to its last one. If one side has a percent sign, it may mean the bare number or its
    hundredth.
    """
    scales = (1, Fraction(1, 100)) if answer.percent != reference.percent else (1,)
    for scale in scales:
        ours = answer.value * (scale if answer.percent else 1)
        theirs = reference.value * (scale if reference.percent else 1)
        tolerance = Fraction(0)
        if reference.decimals and theirs.denominator != 1:
            tolerance = abs(theirs) / 10**6
            if reference.decimals >= 3:
                tolerance = max(tolerance, Fraction(1, 2 * 10**reference.decimals))
        if abs(ours - theirs) <= tolerance:
            return True
    return False


def same_answer(answer: str, reference: str) -> bool:
    """Whether the two are the same text, or numbers that the verifier takes for the same."""
    if answer == reference:
        return True
    found, wanted = parse_number(answer), parse_number(reference)
    return found is not None and wanted is not None and same_number(found, wanted)


def agree(first: str, second: str) -> bool:
    """Whether two answers, neither of which is the reference, are one: numbers by value, whichever
    of the two the verifier would be given as reference, all else as text without case and spaces.
    """
    numbers = parse_number(first), parse_number(second)
    if numbers[0] is not None and numbers[1] is not None:
        return same_number(numbers[0], numbers[1]) or same_number(numbers[1], numbers[0])
    return "".join(first.split()).casefold() == "".join(second.split()).casefold()


def ascii_digits(text: str) -> str:
    """Decimal digits of any script as ASCII; superscripts and the like stay what they are."""
    if text.isascii():
        return text
    return "".join(
        str(unicodedata.decimal(c)) if c.isdecimal() else "-" if c in "−﹣－" else c for c in text
    )


def plain_number(text: str) -> str:
    """`text` with LaTeX around and inside a number spelt out, and single spaces."""
    text = ascii_digits(text.strip(WRAPPING))
    text = LATEX_TEXT.sub(r" \1", text)
    text = _FRAC.sub(lambda m: f"{m[1] or m[3]}/{m[2] or m[4]}", text)
    for latex, replacement in (("\\$", "$"), ("\\%", "%"), ("{,}", ","), ("\\,", ""), ("\\!", "")):
        text = text.replace(latex, replacement)
    return re.sub(r"[ \t]+", " ", text.strip(" $")).strip()


def _build(match: re.Match[str], *, percent: bool) -> Number | None:
    whole = re.sub(r"[,\s]", "", match["whole"] or "0")
    decimals = (match["decimals"] or match["bare"] or ".")[1:]
    denominator = match["denominator"] or "1"
    mixed = match["mixed"] or "0"
    if len(whole + decimals + denominator + mixed) > MAX_DIGITS or int(denominator) == 0:
        return None
    value = Fraction(int(whole + decimals), 10 ** len(decimals))
    value = value * Fraction(10) ** int(match["exponent"] or 0) / int(denominator) + int(mixed)
    return Number(-value if match["sign"] == "-" else value, percent, len(decimals))
