"""Checks and conversions of settings, shared by the configuration and the parts it sets up."""

from __future__ import annotations

import json
from collections.abc import Collection
from difflib import get_close_matches
from enum import Enum
from types import UnionType
from typing import Any, Union, get_args, get_origin

from sdkernels.train.yaml_text import read_as_text, read_text


def check_choice(name: str, value: Any, accepted: tuple[str, ...]) -> None:
    """Raise a `ValueError` that lists what is accepted, nearest first, unless `value` is one of
    it.
    """
    if value in accepted:
        return
    near = get_close_matches(str(value), accepted, n=1)
    hint = f" (did you mean {near[0]!r}?)" if near else ""
    raise ValueError(f"{name}={value!r}{hint}: expected one of {', '.join(accepted)}")


def check_kind(name: str, value: Any, hint: Any) -> None:
    """Raise a `ValueError` unless `value` is of the annotated type; whole numbers are floats."""
    accepted = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    kinds = tuple(get_origin(kind) or kind for kind in accepted)
    is_number = isinstance(value, int) and not isinstance(value, bool)
    good = any(type(value) is kind or (kind is float and is_number) for kind in kinds)
    if not good:
        wanted = " or ".join("None" if kind is type(None) else kind.__name__ for kind in kinds)
        shown = "a mapping" if isinstance(value, dict) else repr(value)
        raise ValueError(f"{name}: expected {wanted}, got {shown}")


def is_numeric(hint: Any) -> bool:
    """Whether an annotation is that of a number, which may be None."""
    kinds = get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)
    return {*kinds} - {type(None)} <= {int, float}


def plain(value: Any) -> Any:
    """`value` as YAML and JSON can hold it."""
    return value.value if isinstance(value, Enum) else value


def as_mapping(
    name: str, value: dict | str | None, *, texts: Collection[str] = ()
) -> dict[str, Any] | None:
    """A mapping from a dict, a JSON object, or `key=value,key=value` with values read as YAML; None
    stays None. Of pairs, the values of the keys in `texts` stay as they were typed.

    Raises:
        TypeError: another kind of value.
        ValueError: a text of neither form, a value that is no YAML, a key twice.
    """
    if value is None or isinstance(value, dict):
        return value
    if not isinstance(value, str):
        raise TypeError(
            f"{name}: expected a mapping, a JSON object or key=value pairs, got "
            f"{type(value).__name__}"
        )
    text = value.strip()
    if text.startswith("{"):
        try:
            return dict(json.loads(text))
        except json.JSONDecodeError as error:
            raise ValueError(
                f"{name}: not valid JSON ({error}): {text!r}; expected an object like "
                '{"key": 1}, or key=value,key=value'
            ) from error
    pairs = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        key, equals, raw = part.partition("=")
        if not equals or not key.strip():
            raise ValueError(
                f"{name}: expected key=value, got {part!r}; write a value with commas as JSON"
            )
        if key.strip() in pairs:
            raise ValueError(f"{name}: {key.strip()!r} is given twice in {text!r}; keep one")
        try:
            pairs[key.strip()] = (read_as_text if key.strip() in texts else read_text)(raw)
        except ValueError as error:
            raise ValueError(
                f"{name}: the value of {part!r} is {error}; expected key=value,key=value, or a "
                "JSON object where a value has commas"
            ) from error
    return pairs
