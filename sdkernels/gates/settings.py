"""Settings of the gates: what each one accepts."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

SCOPES = ("sequence", "batch", "fixed")


def scope_of(scope: str | None, *, fixed: bool) -> str:
    """Over what a threshold is taken: "fixed" goes with a tau, the others with a quantile."""
    if scope is None:
        return "fixed" if fixed else "sequence"
    word("scope", scope, SCOPES)
    if (scope == "fixed") != fixed:
        have = "a tau" if fixed else "no tau"
        raise ValueError(
            f"scope={scope!r} with {have} is not accepted; scope 'fixed' goes with tau=, "
            "'sequence' and 'batch' with a quantile"
        )
    return scope


def word(name: str, value: str, known: tuple[str, ...], other: str = "") -> str:
    """`value`, one of `known`; `other` says what else the caller accepts."""
    if value not in known:
        words = ", ".join(repr(word) for word in known)
        raise ValueError(f"{name}={value!r} is not accepted; give {words} {other}".rstrip())
    return value


def is_finite(value: Any) -> bool:
    """Whether it is a finite number; text, True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def nats(name: str, value: float) -> float:
    """A finite number of nats, 0 or more."""
    if not is_finite(value) or value < 0:
        raise ValueError(f"{name}={value!r} is not accepted; give a finite number of nats >= 0")
    return float(value)


def at_least_1(name: str, value: int) -> int:
    """A whole number, 1 or more."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{name}={value!r} is not accepted; give a whole number >= 1")
    return value


def share_of(name: str, value: float) -> float:
    """A number from 0 to 1."""
    if not is_finite(value) or not 0 <= value <= 1:
        raise ValueError(f"{name}={value!r} is not accepted; give a number in [0, 1]")
    return float(value)
