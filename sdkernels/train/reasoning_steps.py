r"""Reasoning steps of a response, and whether the arithmetic in them holds.

Rule for the steps, in this order:

1. A response with `<step> ... </step>` tags (any attributes) has one step per tag, as in
   2606.11173; text between them is a step too if it has a letter or digit.
2. Otherwise each line with a letter or digit is a step.
3. A response of one line is split into sentences: after `.`, `!` or `?` and a blank, but not after
   the number of an enumeration ("1. Add").

Whether a step is right would take a judge. What can be told without one is whether its equations
between numbers hold ("48 / 2 = 24"), and that is all `check_arithmetic` looks at.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import accumulate, pairwise

_TAG = re.compile(r"<step\b[^<>]*>.*?(?:</step\s*>|\Z)", re.IGNORECASE | re.DOTALL)
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")
_ENUMERATOR = re.compile(r"\s*\d+\.\s*")
_WORD = re.compile(r"[^\W_]")
# The end of a response is part of its tokens, but of no step.
_CONTROL = re.compile(r"<\|[^|<>]*\|>|</s>")


@dataclass(frozen=True)
class Step:
    """One step: its text, and the tokens `first` to before `end` that it is made of."""

    text: str
    first: int
    end: int


def split_steps(text: str) -> list[tuple[int, int]]:
    """Places `(start, end)` of the steps in `text`, in order; see the module for the rule."""
    text = _CONTROL.sub(lambda match: " " * len(match[0]), text)
    tags = [match.span() for match in _TAG.finditer(text)]
    if tags:
        edges = [0, *(edge for span in tags for edge in span), len(text)]
        spans = list(pairwise(edges))
    else:
        spans = [match.span() for match in re.finditer(r"[^\n]+", text)]
        spans = [span for span in spans if _WORD.search(text, *span)]
        if len(spans) == 1:
            spans = _sentences(text, *spans[0])
    return [span for span in spans if _WORD.search(text, *span)]


def _sentences(text: str, start: int, end: int) -> list[tuple[int, int]]:
    cuts = [start]
    for match in _SENTENCE_END.finditer(text, start, end):
        if not _ENUMERATOR.fullmatch(text, cuts[-1], match.end()):
            cuts.append(match.end())
    return list(pairwise([*cuts, end]))


def token_steps(tokens: Sequence[str]) -> list[Step]:
    """The steps of a response given as token texts, which joined make the response.

    Every token is in one step: blanks and whatever else stands between two go with the one before,
    those before the first with the first. No step if no token has a letter or digit.
    """
    text = "".join(tokens)
    starts = [start for start, _ in split_steps(text)]
    if not starts:
        return []
    offsets = [0, *accumulate(map(len, tokens))]
    owners = []
    for at, token in enumerate(tokens):
        # A token that opens with the blank before a step belongs to the step; one that is all
        # blank does not.
        blanks = len(token) - len(token.lstrip()) if token.strip() else 0
        visible = offsets[at] + blanks
        owners.append(max(0, bisect_right(starts, min(visible, len(text) - 1)) - 1))
    steps = []
    for number in sorted(set(owners)):
        first = owners.index(number)
        end = first + owners.count(number)
        steps.append(Step("".join(tokens[first:end]).strip(), first, end))
    return steps


# --- arithmetic ---------------------------------------------------------------------------------

_SIGNS = str.maketrans({"×": "*", "·": "*", "÷": "/", "−": "-", "–": "-"})
_LATEX = (("\\times", "*"), ("\\cdot", "*"), ("\\div", "/"))
_TIMES = re.compile(r"(?<=\d) ?x ?(?=\d)")
_RUN = re.compile(r"[\d\s.,+\-*/()=]+")
_ENUMERATION = re.compile(r"^\s*\d+[.)]\s+(?=\S)")
_BULLET = re.compile(r"^\s*[-*]\s+(?=\S)")
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?")
_MAX_CHARS = 200
# Words and LaTeX commands that take what stands after them, so that the side starts before them.
# "A total of 3 + 4" is as long as it looks; a lone letter is a variable, or C of "5 C 2".
_TAKES_NEXT = re.compile(
    r"(?<![^\W\d_])(?:b?mod|modulo|rem|floor|ceil|ceiling|round|trunc|abs|log|lg|ln|exp|sin|cos|tan"
    r"|sqrt|cbrt|root|square|cube|base|power|choose|gcd|gcf|hcf|lcm|plus|minus|times|over|by|than"
    r"|from|negative|half|twice|double|triple|xor|pm|mp|(?<!total )(?<!sum )of|[^\W\d_a])$",
    re.IGNORECASE,
)
# What makes another value of the number before it.
_GOES_ON = re.compile(
    r"(?:(?:with|and|a)\s+)*\\?(?:[pb]?mod|modulo|rem|remainders?|squared|cubed|choose|factorial"
    r"|percent|rounded|truncated|hundred|thousand|million|billion|trillion|dozen|pi|sqrt|[dt]?frac"
    r"|log|ln|divided\s+by|to\s+the\s+power)\b"
    r"|(?:plus|minus|times|over|to\s+the)\s+\d"
    r"|with\s+\d+\s+(?:left|over|remaining)\b"
    r"|and\s+(?:a\s+half\b|\d+/\d+(?![\d\s]*[-+*/=]))",
    re.IGNORECASE,
)
_RELATIONS = "<>≤≥≈≡→⇒⟶⟹∴"
_LOOK_BACK = 40


def check_arithmetic(step: str) -> bool | None:
    """Whether every equation between numbers in `step` holds; None where it has none.

    An equation, or a chain of them, has an operation on some side ("3 + 4 = 7"). A rounded quotient
    holds if it is right to its last decimal. Nothing is executed; what can't be read is passed
    over, and so is a side that goes on in it.
    """
    text = _ENUMERATION.sub("", step).translate(_SIGNS)
    verdict = _check_text(_BULLET.sub("", text))
    # "- 5 + 3 = -2" begins with a minus, "- 5 + 3 = 8" with a bullet.
    return bool(_check_text(text)) if verdict is False else verdict


def _check_text(text: str) -> bool | None:
    """Whether every equation of a step without its number or bullet holds; None without any."""
    text = text.replace("$", "")
    for name, sign in _LATEX:
        text = text.replace(name, sign)
    text = _TIMES.sub("*", text)
    verdicts = [
        verdict
        for match in _RUN.finditer(text)
        if "=" in match[0] and len(match[0]) <= _MAX_CHARS
        for verdict in _check_run(text, match)
    ]
    return all(verdicts) if verdicts else None


def _check_run(text: str, match: re.Match[str]) -> list[bool]:
    """Verdicts on neighbouring sides of a run such as `2 + 3 = 4 + 1 = 5`."""
    sides = match[0].strip().rstrip(".,").split("=")
    values = [_evaluate(side) for side in sides]
    if _starts_earlier(text, match):
        values[0] = None
    if _goes_on(text, match):
        values[-1] = None
    known = list(zip(values, sides, strict=True))
    if not any(_has_operation(side) for value, side in known if value is not None):
        return []
    return [
        _same(left, right, written)
        for (left, _), (right, written) in pairwise(known)
        if left is not None and right is not None
    ]


def _starts_earlier(text: str, match: re.Match[str]) -> bool:
    """Whether the first side starts before the run: `x + 3 = 7`, `2^3 + 1 = 9`, `9:3 + 1 = 4`,
    `10 mod 3 + 1 = 2`, but not `Step 1: 3 + 1 = 4`.
    """
    before = text[: match.start()].rstrip()
    glued = not text[match.start()].isspace()
    last = before[-1:]
    if _binds(last) or last in tuple("_&"):
        return True
    if last == ":":
        return glued or before[-2:-1].isspace()
    if glued or match[0].lstrip()[:1] in tuple("+-*/"):
        return last.isalnum() or last in tuple(")}]!")
    return _TAKES_NEXT.search(before[-_LOOK_BACK:]) is not None


def _goes_on(text: str, match: re.Match[str]) -> bool:
    """Whether the last side goes on behind the run: `= 7x`, `= 2 x`, `= 2^3`, `= 5!`,
    `= 3 remainder 2`, but not `= 24 buns`.
    """
    between = match[0][len(match[0].rstrip("., \t\n\r")) :]
    if "." in between or "\n" in between:
        return False  # what follows is another sentence
    after = text[match.end() :]
    if _binds(after[:1]) or after[:1] in tuple("²³½¼¾"):
        return True
    glued = not between and re.match(r"[A-Za-z_\\!]|:\d", after)
    return bool(glued or re.match(r"[A-Za-z](?![A-Za-z])", after) or _GOES_ON.match(after))


def _binds(sign: str) -> bool:
    """Whether a character makes one expression of what stands on its two sides."""
    if sign in tuple("^|%"):
        return True
    return bool(sign) and unicodedata.category(sign) == "Sm" and sign not in _RELATIONS


def _has_operation(side: str) -> bool:
    return bool(re.search(r"[\d)]\s*[+\-*/]", side))


def _same(left: Fraction, right: Fraction, written: str) -> bool:
    _, point, decimals = written.strip().partition(".")
    if point and decimals.isdigit():
        return abs(left - right) < Fraction(1, 10 ** len(decimals))
    return left == right


def _evaluate(side: str) -> Fraction | None:
    """Value of sums, products and brackets of numbers; None where it is anything else."""
    parts = _tokens(side)
    if not parts:
        return None
    try:
        value, at = _sum(parts, 0)
    except (IndexError, ValueError, ZeroDivisionError, RecursionError):
        return None
    return value if at == len(parts) else None


def _tokens(side: str) -> list[str] | None:
    parts, at = [], 0
    while at < len(side):
        found = _NUMBER.match(side, at)
        if found:
            parts.append(found[0].replace(",", ""))
            at = found.end()
            continue
        if not side[at].isspace():
            if side[at] not in "+-*/()":
                return None
            parts.append(side[at])
        at += 1
    return parts


def _sum(parts: list[str], at: int) -> tuple[Fraction, int]:
    value, at = _product(parts, at)
    while at < len(parts) and parts[at] in "+-":
        right, after = _product(parts, at + 1)
        value, at = (value + right if parts[at] == "+" else value - right), after
    return value, at


def _product(parts: list[str], at: int) -> tuple[Fraction, int]:
    value, at = _factor(parts, at)
    while at < len(parts) and parts[at] in "*/":
        right, after = _factor(parts, at + 1)
        value, at = (value * right if parts[at] == "*" else value / right), after
    return value, at


def _factor(parts: list[str], at: int) -> tuple[Fraction, int]:
    if parts[at] == "-":
        value, at = _factor(parts, at + 1)
        return -value, at
    if parts[at] == "(":
        value, at = _sum(parts, at + 1)
        if parts[at] != ")":
            raise ValueError("a bracket is not closed")
        return value, at + 1
    return Fraction(parts[at]), at + 1
