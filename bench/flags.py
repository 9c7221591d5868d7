"""Types of command-line flags: what is no use is refused by name, before anything runs."""

from __future__ import annotations

import argparse


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
    seconds = _number(text)
    if not seconds > 0:
        raise argparse.ArgumentTypeError(f"expected seconds above 0, got {text}")
    return seconds


def seconds_or_none(text: str) -> float:
    """A time, or 0.

    Raises:
        ArgumentTypeError: something else, NaN for one.
    """
    seconds = _number(text)
    if not seconds >= 0:
        raise argparse.ArgumentTypeError(f"expected seconds, or 0, got {text}")
    return seconds


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return float("nan")
