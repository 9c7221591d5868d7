"""Finding the final answer in a response, and comparing answers by parsing alone.

Nothing here evaluates text: numbers are matched by a regular expression and built digit by digit.
"""

from __future__ import annotations

import re
import unicodedata
from fractions import Fraction
from itertools import islice
from typing import NamedTuple

MAX_RESPONSE_CHARS = 200_000  # the end of a longer response is read
MAX_ANSWER_CHARS = 1_000
MAX_DIGITS = 400

_ANSWER_LINE = re.compile(r"\banswer\b[*_`\"]{0,4}[ \t]{0,4}[:：]", re.IGNORECASE)
_ANSWER_IS = re.compile(r"\banswer[ \t]{1,4}is\b:?", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed[ \t]{0,4}\{")
_WRAPPING = " \t\r\n*_`\"'“”‘’"

_NUMBER = re.compile(
    r"""(?P<sign>(?<![\w)])[-+])?[ ]?[$€£¥]?[ ]?
        (?:(?P<mixed>\d+)[ ]{1,2}(?=\d+/\d))?
        (?:(?P<whole>\d{1,3}(?:[,\u00a0\u202f\u2009]\d{3})+(?!\d)|\d+)(?P<decimals>\.\d+)?
           |(?P<bare>\.\d+))
        (?:[eE](?P<exponent>[-+]?\d{1,3})(?!\d))?
        (?:[ ]?/[ ]?(?P<denominator>\d+))?""",
    re.VERBOSE | re.ASCII,
)
_FRAC = re.compile(r"\\[dt]?frac\s?(?:\{\s?(-?\d+)\s?\}\{\s?(\d+)\s?\}|(\d)(\d))", re.ASCII)
_LATEX_TEXT = re.compile(r"\\(?:text|mathrm|textbf|mathbf)\s?\{([^{}]*)\}")
# After the number: an operator makes it a part of something else, and so do a power and a variable.
_CONTINUES = re.compile(r"[ ]?[-/*^+(]|[²³¹⁰-⁹]|[a-zA-Z](?![a-zA-Z])")
_UNITS_OF_ONE_LETTER = set("mgshlLkKWVAJNC")
_FORBIDDEN = re.compile(r"[\d*^+<>\\{}]|\bnot\b|n't", re.IGNORECASE)


class Extraction(NamedTuple):
    """A final answer and where it was found, in words."""

    value: str
    where: str


class Number(NamedTuple):
    """A parsed number. `decimals`: digits after the point, 0 for integers and fractions."""

    value: Fraction
    percent: bool
    decimals: int


def extract_answer(text: str, *, numeric: bool) -> Extraction | None:
    r"""The final answer of a response, its think blocks already removed.

    In this order: what follows the last `Answer:` (in the same line, else in the next line that is
    not empty), the last `\boxed{...}`, what follows the last "answer is", and, if `numeric`, the
    last number. Only the last 200,000 characters are read.
    """
    text = text[-MAX_RESPONSE_CHARS:]
    line = _after_last(_ANSWER_LINE, text)
    if line is not None:
        inner = _last_boxed(line)
        return Extraction(_clean(line if inner is None else inner), "the `Answer:` line")
    boxed = _last_boxed(text)
    if boxed is not None:
        return Extraction(_clean(boxed), r"\boxed{}")
    line = _after_last(_ANSWER_IS, text)
    if line is not None:
        return Extraction(_clean(line), "the words after `answer is`")
    if numeric:
        last = None
        for match in _NUMBER.finditer(_ascii_digits(text)):
            last = match
        if last is not None:
            return Extraction(_clean(last.group()), "the last number")
    return None


def parse_number(text: str) -> Number | None:
    r"""The one number that `text` states, or None.

    Understood are signs, thousands separators, decimals, `1e-5`, `3/4`, `1 3/4`, `\frac{3}{4}`,
    percent, currency signs, units and words around it, `x = 5` (the right side counts), and the
    decimal digits of any script. None where there is no number or more than one, where an operator,
    a variable or a "not" goes with it, and for nan, inf, a zero denominator or over 400 digits.
    """
    text = _plain(text[: MAX_ANSWER_CHARS + 1])
    if len(text) > MAX_ANSWER_CHARS:
        return None
    text = text.rsplit("=", 1)[-1]
    matches = list(islice(_NUMBER.finditer(text), 2))
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


def parse_fraction(text: str) -> tuple[int, int] | None:
    """Numerator and denominator as written, so that 2/4 is not 1/2; an integer is n/1."""
    match = re.fullmatch(r"([-+]?\d+)(?: ?/ ?(\d+))?", _plain(text).strip(" .$"), re.ASCII)
    if match is None or len(match.group()) > MAX_DIGITS:
        return None
    return int(match.group(1)), int(match.group(2) or 1)


def parse_hex(text: str) -> int | None:
    """A hexadecimal integer like `-0x3f`."""
    match = re.fullmatch(r"-?0x[0-9a-f]{1,400}", _plain(text).strip(" .").lower())
    return int(match.group(), 16) if match else None


def parse_factors(text: str) -> list[int] | None:
    """The sorted factors of a product like `2 × 2 × 3`."""
    parts = re.split(r" ?(?:×|\*|\\times|\\cdot|·|x) ?", _plain(text).strip(" .$"))
    if not all(re.fullmatch(r"\d{1,400}", part, re.ASCII) for part in parts):
        return None
    return sorted(map(int, parts))


def plain_text(text: str) -> str:
    """`text` for comparing words: one case, single spaces, no quotes or end punctuation around."""
    folded = unicodedata.normalize("NFKC", _LATEX_TEXT.sub(r"\1", text)).casefold()
    return " ".join(folded.split()).strip(_WRAPPING + "$.!,;:()[]{}<>")


def _after_last(pattern: re.Pattern[str], text: str) -> str | None:
    last = None
    for match in pattern.finditer(text):
        last = match
    if last is None:
        return None
    rest = text[last.end() :]
    for line in rest.split("\n", 8)[:8]:
        if line.strip(_WRAPPING):
            return line
    return ""


def _last_boxed(text: str) -> str | None:
    last = None
    for match in _BOXED.finditer(text):
        last = match
    if last is None:
        return None
    depth = 1
    for index in range(last.end(), len(text)):
        depth += {"{": 1, "}": -1}.get(text[index], 0)
        if depth == 0:
            return text[last.end() : index]
    return None


def _clean(text: str) -> str:
    text = text.strip(_WRAPPING)
    if text.startswith("<") and text.endswith(">"):  # the form of the instruction, filled in
        text = text[1:-1]
    return text.strip(_WRAPPING)[:MAX_ANSWER_CHARS].rstrip(_WRAPPING + ".")


def _ascii_digits(text: str) -> str:
    """Decimal digits of any script as ASCII; superscripts and the like stay what they are."""
    if text.isascii():
        return text
    return "".join(
        str(unicodedata.decimal(c)) if c.isdecimal() else "-" if c in "−﹣－" else c for c in text
    )


def _plain(text: str) -> str:
    text = _ascii_digits(text.strip(_WRAPPING))
    text = _LATEX_TEXT.sub(r" \1", text)
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
