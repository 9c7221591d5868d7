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
_NUMBER = re.compile(r"\d{1,3}(?:,\d{3})+(?:\.\d+)?|\d+(?:\.\d+)?")
_MAX_CHARS = 200


def check_arithmetic(step: str) -> bool | None:
    """Whether every equation between numbers in `step` holds; None where it has none.

    An equation has an operation on at least one side ("3 + 4 = 7"). A rounded quotient holds if it
    is right to its last decimal. Nothing is executed; what can't be read is passed over.
    """
    text = _ENUMERATION.sub("", step).translate(_SIGNS).replace("$", "")
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
    before, after = text[: match.start()].rstrip(), text[match.end() :]
    if before and (before[-1].isalnum() or before[-1] in ")}") and _continues(text, match):
        values[0] = None
    # "= 7x" and "= 2 x" go on with a variable, "= 24 buns" does not.
    glued = re.match(r"[A-Za-z_\\^]", after) and not match[0][-1:].isspace()
    if glued or re.match(r"\s*[A-Za-z](?![A-Za-z])", after):
        values[-1] = None
    pairs = pairwise(zip(values, sides, strict=True))
    return [
        _same(left[0], right[0], right[1])
        for left, right in pairs
        if left[0] is not None
        and right[0] is not None
        and (_has_operation(left[1]) or _has_operation(right[1]))
    ]


def _continues(text: str, match: re.Match[str]) -> bool:
    """Whether the run goes on from what stands before it: `x + 3 = 7`, `y2 + 3 = 7`."""
    return not text[match.start()].isspace() or match[0].lstrip()[:1] in tuple("+-*/")


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
