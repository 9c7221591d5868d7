"""Rows of local files and of `datasets` data sets, each with words for where it stands."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

SUFFIXES = (".jsonl", ".json", ".parquet")
LOCAL = "use a local file (.jsonl, .json or .parquet with a `prompt` column)"

Row = tuple[str, dict[str, Any]]  # ("train.jsonl, line 3", {column: value})


def read_file(path: Path) -> Iterator[Row]:
    """Rows of a .jsonl, .json (an array of objects) or .parquet file.

    Raises:
        ValueError: no such file, another suffix, or content that does not parse (with its line).
    """
    if path.suffix not in SUFFIXES:
        raise ValueError(f"data file {path}: its suffix must be one of {', '.join(SUFFIXES)}")
    if not path.is_file():
        raise ValueError(f"data file {path} does not exist")
    reader = {".jsonl": _jsonl, ".json": _json, ".parquet": _parquet}[path.suffix]
    for place, row in reader(path):
        if not isinstance(row, dict):
            raise ValueError(f"{place}: expected an object, got {type(row).__name__}")
        yield place, row


def read_dataset(source: str, split: str) -> Iterator[Row]:
    """Rows of a split of a `datasets` data set: `"owner/name"` or `"owner/name:configuration"`.

    Raises:
        ValueError: it can't be loaded (missing, offline, another split), in one line.
    """
    try:
        import datasets
    except ImportError as error:
        raise ValueError(
            f"data set {source!r} needs the `datasets` package: pip install 'sdkernels[train]', "
            f"or {LOCAL}"
        ) from error
    name, _, configuration = source.partition(":")
    try:
        table = datasets.load_dataset(name, configuration or None, split=split)
    except Exception as error:  # the library and its file systems raise many kinds
        reason = " ".join(str(error).split())
        raise ValueError(
            f"can't load split {split!r} of data set {source!r} from the hub, its cache, or a "
            f"folder of that name: {type(error).__name__}: {reason[:300]}. Check the name and the "
            f"network, or {LOCAL}."
        ) from error
    for number, row in enumerate(table, start=1):
        yield f"{source}, split {split}, row {number}", row


def _jsonl(path: Path) -> Iterator[tuple[str, Any]]:
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            place = f"{path.name}, line {number}"
            text = _decode(line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line, place)
            if not text.strip():
                continue
            try:
                yield place, json.loads(text)
            except ValueError as error:
                raise ValueError(f"{place}: not JSON ({error})") from error


def _json(path: Path) -> Iterator[tuple[str, Any]]:
    text = _decode(path.read_bytes().removeprefix(b"\xef\xbb\xbf"), path.name)
    try:
        rows = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path.name}: not JSON ({error})") from error
    if not isinstance(rows, list):
        raise ValueError(
            f"{path.name}: expected an array of objects, got {type(rows).__name__}; "
            f"a file with one object a line is called .jsonl"
        )
    for number, row in enumerate(rows, start=1):
        yield f"{path.name}, row {number}", row


def _parquet(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        import pyarrow as arrow  # type: ignore[import-untyped]
        import pyarrow.parquet as parquet  # type: ignore[import-untyped]
    except ImportError as error:
        raise ValueError(
            f"{path.name}: Parquet needs pyarrow: pip install 'sdkernels[train]'"
        ) from error
    try:
        table = parquet.read_table(path)
    except (arrow.ArrowException, OSError) as error:
        raise ValueError(f"{path.name}: not readable as Parquet ({error})") from error
    for number, row in enumerate(table.to_pylist(), start=1):
        yield f"{path.name}, row {number}", row


def _decode(data: bytes, place: str) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{place}: not UTF-8 (byte {error.start}: {error.reason})") from error
