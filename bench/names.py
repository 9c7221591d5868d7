"""Names that a user types: exact, or an error that suggests the nearest."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def pick(kind: str, name: str, known: Iterable[str]) -> str:
    """`name` if it is known.

    Raises:
        ValueError: it is not; the message has the nearest known names and all of them.
    """
    known = list(known)
    if name in known:
        return name
    near = difflib.get_close_matches(name.lower().replace("_", "-"), known, n=3, cutoff=0.5)
    near = near or difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.5)
    hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
    raise ValueError(f"{kind} {name!r} is not known{hint} Known: {', '.join(known)}")
