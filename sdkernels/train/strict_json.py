"""JSON that every reader takes, without losing that a number was NaN or infinite.

JSON has no NaN. A number that is none becomes null, and the object it stands in says under
`not_finite` what it was: `{"loss": null, "not_finite": {"loss": "NaN"}}`; for a list, by position:
`{"gap": [0.1, null], "not_finite": {"gap": {"1": "-Infinity"}}}`.
"""

from __future__ import annotations

import json
import math
from typing import Any

NOT_FINITE = "not_finite"
_NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def dumps(value: Any, **settings: Any) -> str:
    """`json.dumps` of `strict(value)`, letters as they are."""
    return json.dumps(strict(value), ensure_ascii=False, allow_nan=False, **settings)


def strict(value: Any) -> Any:
    """A copy of `value` without NaN and infinities; see the module. Tensors become lists."""
    value = _plain(value)
    if isinstance(value, dict):
        kept = {str(key): strict(item) for key, item in value.items()}
        lost = {str(key): name for key, item in value.items() if (name := _lost(_plain(item)))}
        return {**kept, NOT_FINITE: {**kept.get(NOT_FINITE, {}), **lost}} if lost else kept
    if isinstance(value, (list, tuple)):
        return [strict(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def restore(value: Any) -> Any:
    """The value that `strict` was given: `not_finite` put back where it belongs, and removed."""
    if isinstance(value, list):
        return [restore(item) for item in value]
    if not isinstance(value, dict):
        return value
    lost = value.get(NOT_FINITE)
    if not isinstance(lost, dict):
        return {key: restore(item) for key, item in value.items()}
    whole = {key: restore(item) for key, item in value.items() if key != NOT_FINITE}
    for key, name in lost.items():
        place = whole.get(key)
        if isinstance(name, dict) and isinstance(place, list):
            for at, inner in name.items():
                if at.isdecimal() and int(at) < len(place) and inner in _NAMES:
                    place[int(at)] = _NAMES[inner]
        elif isinstance(name, str) and name in _NAMES:
            whole[key] = _NAMES[name]
    return whole


def _plain(value: Any) -> Any:
    return value.tolist() if hasattr(value, "tolist") else value


def _lost(value: Any) -> str | dict[str, str] | None:
    """What to note about one item of an object; None where nothing is lost."""
    if isinstance(value, (list, tuple)):
        names = {str(at): _name(item) for at, item in enumerate(value)}
        return {at: name for at, name in names.items() if name} or None
    return _name(value)


def _name(value: Any) -> str | None:
    if not isinstance(value, float) or math.isfinite(value):
        return None
    return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
