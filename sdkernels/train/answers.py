"""Finding the final answer in a response, and comparing answers by parsing alone.

Nothing here evaluates text. Numbers are read and compared by `sdkernels.contexts.numbers`, because
a context that shows a wrong answer must agree with the verifier on what is wrong.
"""

from __future__ import annotations

import re
import unicodedata
from typing import NamedTuple

from sdkernels.contexts.numbers import (
    LATEX_TEXT,
    MAX_ANSWER_CHARS,
    MAX_DIGITS,
    NUMBER,
    WRAPPING,
    ascii_digits,
    parse_number,
    plain_number,
    same_number,
)

__all__ = [
    "Extraction",
    "extract_answer",
    "parse_factors",
    "parse_fraction",
    "parse_hex",
    "parse_number",
    "plain_text",
    "same_number",
]

MAX_RESPONSE_CHARS = 200_000  # the end of a longer response is read

_ANSWER_LINE = re.compile(r"\banswer\b[*_`\"]{0,4}[ \t]{0,4}[:：]", re.IGNORECASE)
_ANSWER_IS = re.compile(r"\banswer[ \t]{1,4}is\b:?", re.IGNORECASE)
_BOXED = re.compile(r"\\boxed[ \t]{0,4}\{")


class Extraction(NamedTuple):
    """A final answer and where it was found, in words."""

    value: str
    where: str


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
        for match in NUMBER.finditer(ascii_digits(text)):
            last = match
        if last is not None:
            return Extraction(_clean(last.group()), "the last number")
    return None


def parse_fraction(text: str) -> tuple[int, int] | None:
    """Numerator and denominator as written, so that 2/4 is not 1/2; an integer is n/1."""
    match = re.fullmatch(r"([-+]?\d+)(?: ?/ ?(\d+))?", plain_number(text).strip(" .$"), re.ASCII)
    if match is None or len(match.group()) > MAX_DIGITS:
        return None
    return int(match.group(1)), int(match.group(2) or 1)


def parse_hex(text: str) -> int | None:
    """A hexadecimal integer like `-0x3f`."""
    match = re.fullmatch(r"-?0x[0-9a-f]{1,400}", plain_number(text).strip(" .").lower())
    return int(match.group(), 16) if match else None


def parse_factors(text: str) -> list[int] | None:
    """The sorted factors of a product like `2 × 2 × 3`."""
    parts = re.split(r" ?(?:×|\*|\\times|\\cdot|·|x) ?", plain_number(text).strip(" .$"))
    if not all(re.fullmatch(r"\d{1,400}", part, re.ASCII) for part in parts):
        return None
    return sorted(map(int, parts))


def plain_text(text: str) -> str:
    """`text` for comparing words: one case, single spaces, no quotes or end punctuation around."""
    folded = unicodedata.normalize("NFKC", LATEX_TEXT.sub(r"\1", text)).casefold()
    return " ".join(folded.split()).strip(WRAPPING + "$.!,;:()[]{}<>")


def _after_last(pattern: re.Pattern[str], text: str) -> str | None:
    last = None
    for match in pattern.finditer(text):
        last = match
    if last is None:
        return None
    rest = text[last.end() :]
    for line in rest.split("\n", 8)[:8]:
        if line.strip(WRAPPING):
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
    text = text.strip(WRAPPING)
    if text.startswith("<") and text.endswith(">"):  # the form of the instruction, filled in
        text = text[1:-1]
    return text.strip(WRAPPING)[:MAX_ANSWER_CHARS].rstrip(WRAPPING + ".")
