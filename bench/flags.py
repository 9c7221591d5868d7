"""Types of command-line flags: what is no use is refused by name, before anything runs."""

from __future__ import annotations

import argparse
from collections.abc import Callable


def positive_int(text: str) -> int:
    """A whole number above 0.

    Raises:
        ArgumentTypeError: something else; argparse puts the flag's name before it.
    """
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number <= 0:
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text}")
    return number


def positive_seconds(text: str) -> float:
    """A time above 0.

    Raises:
        ArgumentTypeError: something else, NaN for one.
    """
    return _number(text, lambda seconds: seconds > 0, "seconds above 0")


def seconds_or_none(text: str) -> float:
    """A time, or 0.

    Raises:
        ArgumentTypeError: something else, NaN for one.
    """
    return _number(text, lambda seconds: seconds >= 0, "seconds, or 0")


def _number(text: str, accepted: Callable[[float], bool], expected: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not accepted(number):
        raise argparse.ArgumentTypeError(f"expected {expected}, got {text}")
    return number
