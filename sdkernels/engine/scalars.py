"""Numbers among the arguments: which are accepted, and what is said of the others."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any


def is_number(value: Any) -> bool:
    """A real number: not a bool, not a tensor (which would have to be read from its device)."""
    return isinstance(value, Real) and not isinstance(value, bool)


def is_whole_number(value: Any) -> bool:
    """An integer that is no bool."""
    return isinstance(value, Integral) and not isinstance(value, bool)


def above_zero(name: str, value: Any, more: str = "") -> float:
    """`value` as a float if it is a finite number above 0; `more` ends the message otherwise."""
    if not is_number(value) or not 0 < float(value) < math.inf:
        raise ValueError(f"{name}={value!r}: expected a finite number above 0{more}")
    return float(value)
