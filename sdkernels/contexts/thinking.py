"""Removing think blocks from a response."""

from __future__ import annotations

import re

_TAG = re.compile(r"<(/?)think(?:ing)?>")


def strip_thinking(text: str) -> str:
    """`text` without its think blocks, stripped of surrounding white space.

    Everything before a closing tag without an opening one goes too: many chat templates open the
    block in the prompt. A block that is never closed (the response ran out of tokens while
    thinking) takes the rest of the text with it. One pass, so linear in the length of `text`.
    """
    kept: list[str] = []
    cursor = 0
    inside = False
    for tag in _TAG.finditer(text):
        closes = bool(tag.group(1))
        if not inside and closes:
            kept.clear()
            cursor = tag.end()
        elif not inside:
            kept.append(text[cursor : tag.start()])
            inside = True
        elif closes:
            cursor = tag.end()
            inside = False
    if not inside:
        kept.append(text[cursor:])
    return "".join(kept).strip()
