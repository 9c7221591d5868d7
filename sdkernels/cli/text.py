"""Plain-text layout for listings, and parsing of KEY=VALUE settings."""

from __future__ import annotations

import argparse
import shutil
import textwrap
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from sdkernels.train.yaml_text import read_as_text, read_text


def columns(rows: Sequence[tuple[str, str]]) -> str:
    """Name and text, the text wrapped to the terminal and aligned."""
    left = max(len(name) for name, _ in rows) + 2
    width = max(40, shutil.get_terminal_size((100, 20)).columns - left)
    lines = []
    for name, text in rows:
        # A path or the name of a data set stays in one piece, so that it can be copied.
        wrapped = textwrap.wrap(
            " ".join(text.split()), width, break_long_words=False, break_on_hyphens=False
        ) or [""]
        lines.append(name.ljust(left) + wrapped[0])
        lines += [" " * left + line for line in wrapped[1:]]
    return "\n".join(lines)


def record(fields: Mapping[str, Any]) -> str:
    """One field a line; mappings and lists are spelt out, nothing is shown as a Python object."""
    return columns([(key.replace("_", " "), _shown(value)) for key, value in fields.items()])


def parse_settings(
    pairs: Sequence[str], *, flag: str = "--set", texts: Collection[str] = ()
) -> dict[str, Any]:
    """`key=value` pairs; values are read as YAML, so that numbers, true and null are what they look
    like. Those of the keys in `texts` stay as they were typed. `flag` names where they came from.

    Raises:
        ValueError: a pair without `=`, a value that is no YAML, a key twice.
    """
    settings: dict[str, Any] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise ValueError(f"{flag} {pair!r}: expected KEY=VALUE")
        if key.strip() in settings:
            raise ValueError(f"{flag} {pair!r}: {key.strip()!r} is given twice; keep one")
        try:
            settings[key.strip()] = (read_as_text if key.strip() in texts else read_text)(value)
        except ValueError as error:
            raise ValueError(f"{flag} {pair!r}: its value is {error}") from error
    return settings


def at_least(low: int) -> Callable[[str], int]:
    """An argparse `type`: whole numbers from `low` on; others are refused before anything loads."""

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = low - 1
        if value < low:
            raise argparse.ArgumentTypeError(f"{text}: expected a whole number of at least {low}")
        return value

    return parse


def _shown(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={_shown(item)}" for key, item in value.items()) or "none"
    if isinstance(value, (list, tuple, set, frozenset)):
        return ", ".join(_shown(item) for item in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else str(value)
