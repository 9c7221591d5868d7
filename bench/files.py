"""Where files go, and what is written there: nobody else's file is overwritten, nor an earlier one
that nobody named.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

from sdkernels.train.strict_json import dumps

from . import results

# For --help, wherever `place` chooses the file.
EXISTING = (
    "a file that has the default name already is kept, and the next free name is taken "
    "(`-2.json`); one named here is replaced if it was written by this command, else refused"
)


def place(asked: Path | None, default: Path, ours: Callable[[Any], bool]) -> Path:
    """The file to write: the one asked for, else `default`, or where that exists the first free
    name of `default-2`, `default-3`, ..., which is said.

    Raises:
        ValueError: it cannot be written, or it is asked for and `ensure_ours` refuses it.
    """
    if asked is not None:
        ensure_ours(asked, ours)
        return asked
    path = default
    numbers = count(2)
    while path.exists():
        path = default.with_name(f"{default.stem}-{next(numbers)}{default.suffix}")
    results.ensure_writable(path)
    if path != default:
        print(f"{default} is kept: this goes to {path}", file=sys.stderr)
    return path


def ensure_ours(path: Path, ours: Callable[[Any], bool]) -> None:
    """Leave alone what is not there, is empty, or whose content is `ours`.

    Raises:
        ValueError: it cannot be written, or has something else in it.
    """
    results.ensure_writable(path)
    if not path.exists() or path.stat().st_size == 0:
        return
    try:
        known = ours(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, RecursionError):
        known = False
    if not known:
        raise ValueError(f"{path} exists and was not written by this command: it is not replaced")


def is_results(content: Any) -> bool:
    """Whether it is the content of a results file of the suite."""
    try:
        results.check(content)
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError):
        return False  # JSON of another kind can be anything
    return True


def is_step_file(content: Any, kind: str) -> bool:
    """Whether it is a file of `step_tables` of this kind."""
    return isinstance(content, dict) and content.get("kind") == kind and "rows" in content


def write(path: Path, report: Any) -> None:
    """As JSON without NaN and infinities; see `sdkernels.train.strict_json`."""
    path.write_text(dumps(report, indent=1, default=str) + "\n", encoding="utf-8")
