"""Quotes of a response: reading them off a model's reply, and finding their first token."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any


def read_tag(text: str, tag: str) -> str:
    """What stands between `<tag>` and `</tag>`, stripped; empty where there is no such pair."""
    match = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)
    return match.group(1).strip() if match else ""


def find_quote(quote: str, text: str) -> str | None:
    """The part of `text` that `quote` means: itself, or the same words with other white space.

    None where there is none, also for an empty quote.
    """
    quote = quote.strip().strip('"“”').strip()
    if not quote:
        return None
    if quote in text:
        return quote
    match = re.search(r"\s+".join(map(re.escape, quote.split())), text)
    return match.group() if match else None


def error_start(token_ids: Sequence[int], quote: str, tokenizer: Any) -> int | None:
    """Index of the first token of a response that carries a part of `quote`.

    Found by decoding prefixes of the response's own ids, because encoding the prefix again need not
    give the same tokens. A token that begins before the quote and reaches into it counts. None
    where the response does not contain the quote.
    """

    def text_of(count: int) -> str:
        return str(tokenizer.decode(list(token_ids[:count]), skip_special_tokens=True))

    whole = text_of(len(token_ids))
    start = whole.find(quote) if quote else -1
    if start < 0:
        return None
    wanted, before = whole[: start + 1], whole[:start]
    low, high = 1, len(token_ids)  # smallest number of tokens that spell the quote's first letter
    while low < high:
        middle = (low + high) // 2
        if text_of(middle).startswith(wanted):
            high = middle
        else:
            low = middle + 1
    # Back to where nothing of the quote is spelt yet: over one token, or over several where its
    # first letter has several bytes, parts of which decode to nothing sound.
    index = low
    while index > 0 and not before.startswith(text_of(index)):
        index -= 1
    return index
