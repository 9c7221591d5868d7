"""The cache of converted GGUF files, with the conversion itself replaced."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

import pytest

from sdkernels.train import gguf
from sdkernels.train.errors import ModelError


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "sdkernels"


@pytest.fixture
def source(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"weights")
    return file


@pytest.fixture
def conversions(monkeypatch):
    """Counts conversions; each writes one file."""
    done: list[Path] = []

    def convert(file, folder):
        done.append(file)
        (folder / "model.safetensors").write_bytes(b"converted")

    monkeypatch.setattr(gguf, "_convert", convert)
    return done


def test_a_file_is_converted_once(cache, source, conversions):
    first = gguf.converted_folder(source)
    assert first.parent == cache
    assert gguf.converted_folder(source) == first
    assert len(conversions) == 1
    os.utime(source, ns=(1, 1))  # another file, as far as anyone can tell
    assert gguf.converted_folder(source) != first
    assert len(conversions) == 2


def test_an_interrupted_conversion_leaves_nothing(cache, source, monkeypatch):
    def convert(file, folder):
        (folder / "half").write_bytes(b"x")
        raise KeyboardInterrupt

    monkeypatch.setattr(gguf, "_convert", convert)
    with pytest.raises(KeyboardInterrupt):
        gguf.converted_folder(source)
    assert list(cache.iterdir()) == []


def test_a_full_disk_gets_one_line(cache, source, monkeypatch):
    def convert(file, folder):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(gguf, "_convert", convert)
    with pytest.raises(ModelError, match=r"No space left on device.*set XDG_CACHE_HOME"):
        gguf.converted_folder(source)
    assert list(cache.iterdir()) == []


def test_a_cache_that_cannot_be_made(tmp_path, source, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="cannot write the model cache"):
        gguf.converted_folder(source)


def test_another_process_may_be_faster(cache, source, monkeypatch):
    def convert(file, folder):
        target = cache / folder.name[1 : folder.name.rindex("-")]
        target.mkdir()
        (target / "theirs").write_bytes(b"x")
        (folder / "ours").write_bytes(b"x")

    monkeypatch.setattr(gguf, "_convert", convert)
    folder = gguf.converted_folder(source)
    assert [path.name for path in folder.iterdir()] == ["theirs"]
    assert list(cache.iterdir()) == [folder]


def test_what_a_killed_conversion_left_goes_later(cache, source, conversions):
    old, young = cache / ".model-1-a", cache / ".model-1-b"
    for scratch in (old, young):
        scratch.mkdir(parents=True)
    long_ago = time.time() - 2 * gguf.ABANDONED_AFTER_SECONDS
    os.utime(old, (long_ago, long_ago))
    gguf.converted_folder(source)
    assert not old.exists()
    assert young.exists()


def test_the_wheel_is_named_when_it_is_missing(monkeypatch):
    monkeypatch.setattr(gguf, "WHEEL", "no_such_wheel_anywhere")
    with pytest.raises(ModelError, match="make setup"):
        gguf.embedded_smollm2()
