"""Reading rows: formats, and one clear line for what can't be read."""

import json
from pathlib import Path
from typing import Any

import pyarrow as arrow
import pyarrow.parquet as parquet
import pytest

from sdkernels.train.sources import read_dataset, read_file


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def test_jsonl_with_a_byte_order_mark_blank_lines_and_no_last_line_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"a": "\xc3\xbc"}\r\n\n{"a": "\\u2028"}')
    assert list(read_file(path)) == [
        ("a.jsonl, line 1", {"a": "ü"}),
        ("a.jsonl, line 3", {"a": "\u2028"}),
    ]


def test_a_line_separator_inside_a_text_is_no_line_end(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", '{"a": "x\u2028y"}\n')
    assert [row["a"] for _, row in read_file(path)] == ["x\u2028y"]


def test_json_and_parquet_count_rows(tmp_path: Path) -> None:
    rows = [{"a": 1, "b": None}, {"a": 2, "b": "x"}]
    path = write(tmp_path / "a.json", json.dumps(rows))
    assert list(read_file(path)) == [("a.json, row 1", rows[0]), ("a.json, row 2", rows[1])]
    parquet.write_table(arrow.Table.from_pylist(rows), tmp_path / "a.parquet")
    assert [row for _, row in read_file(tmp_path / "a.parquet")] == rows


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", '{"a": 1}\n{"a": \n', r"a\.jsonl, line 2: not JSON"),
        ("a.jsonl", '{"a": 1}\n[1]\n', r"a\.jsonl, line 2: expected an object, got list"),
        ("a.jsonl", b'{"a": 1}\n{"a": "\xff"}\n', r"a\.jsonl, line 2: not UTF-8 \(byte 7"),
        ("a.json", '{"a": 1}', r"expected an array of objects, got dict.*\.jsonl"),
        ("a.json", "[1", r"a\.json: not JSON"),
        ("a.json", "[1]", r"a\.json, row 1: expected an object, got int"),
        ("a.parquet", "not parquet", r"a\.parquet: not readable as Parquet"),
        ("a.parquet", "", r"a\.parquet: not readable as Parquet"),
        ("a.csv", "a,b", r"its suffix must be one of \.jsonl, \.json, \.parquet"),
    ],
)
def test_what_cannot_be_read(tmp_path: Path, name: str, content: str | bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        list(read_file(write(tmp_path / name, content)))
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing\.jsonl does not exist"):
        list(read_file(tmp_path / "nothing.jsonl"))


def test_a_datasets_id_that_cannot_be_had_offline_is_one_line() -> None:
    with pytest.raises(
        ValueError, match="can't load split 'train' of data set 'no-one/nothing'"
    ) as e:
        list(read_dataset("no-one/nothing", "train"))
    message = str(e.value)
    assert "use a local file" in message
    assert "\n" not in message


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A data set in a folder, which `datasets` loads like one of the hub."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "set"
    folder.mkdir()
    for split, text in (("train", "one"), ("test", "two")):
        write(folder / f"{split}.jsonl", json.dumps({"prompt": text, "answer": 3}) + "\n")
    return folder


def test_a_datasets_id(hub: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", hub.parent / "cache")
    rows: list[tuple[str, dict[str, Any]]] = list(read_dataset(str(hub), "test"))
    assert rows == [(f"{hub}, split test, row 1", {"prompt": "two", "answer": 3})]
    with pytest.raises(ValueError, match="can't load split 'nope'"):
        list(read_dataset(str(hub), "nope"))
