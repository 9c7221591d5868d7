"""Names that a user types: case and underscores don't matter, a wrong one gets suggestions."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def pick(kind: str, name: str, known: Iterable[str]) -> str:
    """The known name that `name` means: `Qwen3_8B` is `qwen3-8b`.

    Raises:
        ValueError: there is none; the message has the nearest known names and all of them.
    """
    known = list(known)
    plain = name.strip().lower().replace("_", "-")
    if plain in known:
        return plain
    near = difflib.get_close_matches(plain, known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(f"{kind} {name!r} is not known{hint or '.'} Known: {', '.join(known)}")
