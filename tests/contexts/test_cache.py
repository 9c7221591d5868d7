"""The disk cache under concurrent, killed and failing writers."""

import json
import logging
import os
import threading
from pathlib import Path

import pytest

from sdkernels.contexts.cache import DiskCache, content_key

KEY = content_key({"a": 1})


def test_what_was_put_is_got(tmp_path: Path) -> None:
    cache = DiskCache(tmp_path / "new" / "folder")
    assert cache.get(KEY) is None
    cache.put(KEY, {"text": "ü", "cut": False})
    assert cache.get(KEY) == {"text": "ü", "cut": False}
    assert DiskCache(tmp_path / "new" / "folder").get(KEY) == {"text": "ü", "cut": False}


def test_the_key_is_that_of_the_content() -> None:
    assert content_key({"a": 1, "b": 2}) == content_key({"b": 2, "a": 1})
    assert content_key({"a": 1}) != content_key({"a": "1"})
    assert len(KEY) == 64


def test_a_torn_file_counts_as_absent_and_is_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DiskCache(tmp_path)
    cache.put(KEY, {"text": "whole"})
    [path] = tmp_path.rglob("*.json")
    path.write_text('{"text": "who')
    with caplog.at_level(logging.WARNING):
        assert cache.get(KEY) is None
    assert path.name in caplog.text
    cache.put(KEY, {"text": "again"})
    assert cache.get(KEY) == {"text": "again"}


def test_a_writer_killed_before_the_rename_leaves_no_entry(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = DiskCache(tmp_path)

    def killed(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            cache.put(KEY, {"text": "half"})
    assert cache.get(KEY) is None
    cache.put(KEY, {"text": "whole"})
    assert cache.get(KEY) == {"text": "whole"}


def test_a_full_disk_loses_the_entry_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cache = DiskCache(tmp_path)

    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with caplog.at_level(logging.WARNING):
        cache.put(KEY, {"text": "x"})
    assert "No space left on device" in caplog.text
    assert cache.get(KEY) is None
    assert list(tmp_path.rglob("*.tmp")) == []


def test_a_reader_never_sees_half_an_entry(tmp_path: Path) -> None:
    def write_often(text: str) -> None:
        cache = DiskCache(tmp_path)
        for _ in range(100):
            cache.put(KEY, {"text": text * 50_000})

    writers = [threading.Thread(target=write_often, args=(text,)) for text in "ab"]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        for path in tmp_path.rglob("*.json"):
            seen.add(json.loads(path.read_text())["text"])
    assert seen
    assert seen <= {"a" * 50_000, "b" * 50_000}
    assert len(list(tmp_path.rglob("*"))) == 2  # the folder and the entry: nothing left over
