"""YAML as everybody writes it: `1e-3` is a number, and a key stands once."""

from __future__ import annotations

import re
from collections.abc import Hashable
from typing import Any

import yaml

_FLOAT_TAG = "tag:yaml.org,2002:float"
_MERGE = "<<"  # the key under which an alias brings its entries


class _Loader(yaml.SafeLoader):
    """`SafeLoader` with the numbers of YAML 1.2 (YAML 1.1 wants a point and a signed exponent), and
    without keys that replace an earlier one in silence. What is quoted stays text.
    """

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        lines: dict[str, int] = {}
        for key, _ in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value != _MERGE:
                if key.value in lines:
                    raise yaml.constructor.ConstructorError(
                        None,
                        None,
                        f"key {key.value!r} stands in line {lines[key.value]} and again in line "
                        f"{line}; keep one of them",
                    )
                lines[key.value] = line
        return super().construct_mapping(node, deep=deep)


_Loader.add_implicit_resolver(
    _FLOAT_TAG,
    re.compile(r"[-+]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)[eE][-+]?[0-9]+$"),
    list("-+.0123456789"),
)


def read_text(text: str) -> Any:
    """The value that `text` describes.

    Raises:
        ValueError: no YAML, or a key twice; one line.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except (yaml.YAMLError, ValueError) as error:  # a date that does not exist is a ValueError
        raise ValueError(f"not valid YAML: {' '.join(str(error).split())}") from error


def read_as_text(text: str) -> str | None:
    """`text` as it was typed, also where YAML reads a number or a date in it (`007`, `1e3`). Quotes
    go, and what is null stays None.

    Raises:
        ValueError: no YAML; one line.
    """
    value = read_text(text)
    return value if value is None or isinstance(value, str) else text.strip()
