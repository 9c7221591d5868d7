"""Quotes: reading them, finding them in a response, and the first token they touch."""

from typing import Any

import pytest

from sdkernels.contexts import error_start
from sdkernels.contexts.quotes import find_quote, read_tag


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<why>a\nb </why>", "a\nb"),
        ("x <why>a</why> <why>b</why>", "a"),
        ("<why>a", ""),
        ("a</why>", ""),
        ("", ""),
    ],
)
def test_read_tag(text: str, value: str) -> None:
    assert read_tag(text, "why") == value


@pytest.mark.parametrize(
    ("quote", "text", "found"),
    [
        ("b c", "a b c d", "b c"),
        ('"b c"', "a b c d", "b c"),
        ("b  c", "a b\nc d", "b\nc"),
        ("(1+2)", "x (1+2) y", "(1+2)"),
        ("z", "a b", None),
        ("", "a b", None),
        ('""', "a b", None),
    ],
)
def test_find_quote(quote: str, text: str, found: str | None) -> None:
    assert find_quote(quote, text) == found


class Pieces:
    """Decodes bytes; every id is one piece, and half a character decodes to a question mark."""

    def __init__(self, *pieces: str | bytes) -> None:
        self.pieces = [p.encode() if isinstance(p, str) else p for p in pieces]
        self.ids = list(range(len(pieces)))

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        assert skip_special_tokens
        return b"".join(self.pieces[i] for i in ids).decode(errors="replace")


@pytest.mark.parametrize(
    ("pieces", "quote", "index"),
    [
        (["Step", " one", ".", " Step", " two"], "Step two", 3),
        (["Step", " one", ".", " Step", " two"], "Step", 0),
        (["Step", " one", ".", " Step", " two"], "wo", 4),
        (["Step", " one", ".", " Step", " two"], "three", None),
        (["Step", " one"], "", None),
        ([], "a", None),
        (["a", "", "", "b"], "b", 3),
        (["x", b"\xe2", b"\x82", b"\xac", "y"], "€y", 1),
        (["x", b"\xe2\x82", b"\xac", "y"], "y", 3),
        ([b"\xc3", b"\xa9", "t", b"\xc3", b"\xa9"], "té", 2),
    ],
)
def test_error_start(pieces: list[Any], quote: str, index: int | None) -> None:
    tokenizer = Pieces(*pieces)
    assert error_start(tokenizer.ids, quote, tokenizer) == index


def test_it_agrees_with_looking_at_every_token() -> None:
    words = [f" w{i % 7}" for i in range(40)]
    tokenizer = Pieces(*words)
    whole = "".join(words)
    for start in range(0, len(whole) - 3, 5):
        quote = whole[start:]
        spans = [sum(map(len, words[:i])) for i in range(len(words) + 1)]
        first = next(i for i in range(len(words)) if spans[i + 1] > whole.find(quote))
        assert error_start(tokenizer.ids, quote, tokenizer) == first
