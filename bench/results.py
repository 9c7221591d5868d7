"""The results file: JSON, one per machine and day. Every published figure is read from one."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

SCHEMA = 2
_TOP = {"schema": int, "command": str, "machine": dict, "runs": list, "left_out": list}
_RUN = {
    "case": str,
    "title": str,
    "shape": dict,
    "dtype": str,
    "device": str,
    "head": str,
    "teacher": str,
    "flops": int,
    "budget_bytes": int,
    "checked_tokens": int,
    "floor": dict,
    "rows": list,
}
_FLOOR = {
    "products": int,
    "chunk_tokens": int,
    "seconds": dict,
    "flops_per_second": float,
    "copy_bytes_per_second": float,
    "input_copies": int,
}
_ROW = {"peer": str, "title": str, "status": str}
_TIMED = {"seconds": dict, "ratio_to_floor": float, "flops_per_second": float, "value_error": float}
_SECONDS = ("median", "quartile_low", "quartile_high", "min", "max", "repeats")


def assemble(
    command: str,
    machine: dict[str, Any],
    runs: list[dict[str, Any]],
    left_out: list[dict[str, Any]] | None = None,
) -> dict[str, Any]:
    """The content of a results file; `left_out` are runs for which there was no time."""
    return {
        "schema": SCHEMA,
        "command": command,
        "machine": machine,
        "runs": runs,
        "left_out": left_out or [],
    }


def write(path: Path, result: dict[str, Any]) -> None:
    """Check and write; the folder is made. The file is exchanged in one step, so that whoever is
    killed meanwhile leaves the one before, not half of this.
    """
    check(result)
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part")
    part.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n", encoding="utf-8")
    part.replace(path)


def ensure_writable(path: Path) -> None:
    """Make the folder, leave nothing else.

    Raises:
        ValueError: no results can be written at `path`, and why.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path.parent):
            pass
    except OSError as error:
        raise ValueError(f"nothing can be written to {path.parent}: {error.strerror}") from error
    if path.exists() and not (path.is_file() and os.access(path, os.W_OK)):
        what = "a folder" if path.is_dir() else "not a file that may be written"
        raise ValueError(f"{path} is {what}: expected the name of a JSON file")


def read(path: Path) -> dict[str, Any]:
    """Read and check.

    Raises:
        ValueError: not such a file; the message names it and what is missing.
    """
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
        check(result)
    except ValueError as error:
        raise ValueError(f"{path} is no results file of this version: {error}") from error
    return result


def check(result: Any) -> None:
    """Raise ValueError unless every field that tables and plots read is there, a row that was not
    timed says why, and ratios are those of the run's own floor.
    """
    _fields("file", result, _TOP)
    if result["schema"] != SCHEMA:
        raise ValueError(f"schema {result['schema']}, this version reads {SCHEMA}")
    for number, run in enumerate(result["runs"]):
        where = f"run {number}"
        _fields(where, run, _RUN)
        _fields(f"{where}, shape", run["shape"], {"name": str, "tokens": int, "vocab": int})
        _fields(f"{where}, floor", run["floor"], _FLOOR)
        floor = run["floor"]["seconds"]
        _fields(f"{where}, floor", floor, dict.fromkeys(_SECONDS, (int, float)))
        for row in run["rows"]:
            _check_row(f"{where}, peer {row.get('peer')}", row, floor["median"])


def _check_row(where: str, row: dict[str, Any], floor_median: float) -> None:
    _fields(where, row, _ROW)
    if row["status"] == "ok":
        _fields(where, row, _TIMED)
        _fields(where, row["seconds"], dict.fromkeys(_SECONDS, (int, float)))
        ratio = row["seconds"]["median"] / floor_median
        if abs(ratio - row["ratio_to_floor"]) > 1e-9 * ratio:
            raise ValueError(f"{where}: ratio_to_floor is not that of this run's floor")
        return
    if row["status"] not in ("wrong", "not run"):
        raise ValueError(f"{where}: status {row['status']!r}")
    if not row.get("reason"):
        raise ValueError(f"{where}: {row['status']} without a reason")
    if "seconds" in row:
        raise ValueError(f"{where}: {row['status']}, but it has a time")


def _fields(where: str, value: Any, wanted: dict[str, Any]) -> None:
    if not isinstance(value, dict):
        raise ValueError(f"{where}: expected an object, got {type(value).__name__}")
    for name, kind in wanted.items():
        if not isinstance(value.get(name), kind):
            raise ValueError(f"{where}: field {name!r} is {value.get(name)!r}")
