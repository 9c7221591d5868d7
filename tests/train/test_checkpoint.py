"""Complete and incomplete checkpoint folders."""

from __future__ import annotations

import errno
import json
from pathlib import Path

import pytest
import torch

from sdkernels.train import checkpoint
from sdkernels.train.errors import CheckpointError


@pytest.fixture
def make(tmp_path):
    def folder(step, *, complete=True):
        path = tmp_path / f"checkpoint-{step}"
        (path / "inner").mkdir(parents=True)
        (path / "weights.bin").write_bytes(b"x" * 100)
        (path / "inner" / "state.bin").write_bytes(b"y" * 10)
        if complete:
            checkpoint.mark_complete(path, step)
        return path

    return folder


def test_only_complete_folders_count_and_steps_are_numbers(make, tmp_path):
    for step in (9, 10, 100):
        make(step)
    make(200, complete=False)
    (tmp_path / "checkpoint-x").mkdir()
    (tmp_path / "notes").mkdir()
    assert [path.name for path in checkpoint.checkpoints(tmp_path)] == [
        "checkpoint-9",
        "checkpoint-10",
        "checkpoint-100",
    ]
    assert checkpoint.last_checkpoint(tmp_path).name == "checkpoint-100"
    assert [p.name for p in checkpoint.incomplete_checkpoints(tmp_path)] == ["checkpoint-200"]
    assert checkpoint.checkpoints(tmp_path / "nowhere") == []


@pytest.mark.parametrize("damage", ["missing", "shorter", "garbage", "empty", "list"])
def test_damage_is_seen(make, damage):
    folder = make(3)
    assert checkpoint.is_complete(folder)
    marker = folder / checkpoint.MARKER
    if damage == "missing":
        (folder / "inner" / "state.bin").unlink()
    elif damage == "shorter":
        (folder / "weights.bin").write_bytes(b"x" * 99)
    else:
        marker.write_text({"garbage": "{", "empty": "", "list": "[]"}[damage])
    assert not checkpoint.is_complete(folder)


def test_the_marker_lists_every_file(make):
    folder = make(3)
    content = json.loads((folder / checkpoint.MARKER).read_text())
    assert content == {"step": 3, "files": {"inner/state.bin": 10, "weights.bin": 100}}


def test_rotation_keeps_the_newest_and_the_best(make, tmp_path):
    for step in (1, 2, 3, 4):
        make(step)
    best = str(tmp_path / "checkpoint-2")
    checkpoint.rotate(tmp_path, 2, keep=best)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "checkpoint-2",
        "checkpoint-3",
        "checkpoint-4",
    ]
    checkpoint.rotate(tmp_path, None)
    assert len(checkpoint.checkpoints(tmp_path)) == 3


def fail(folder: Path, error: BaseException, resume_hint: str = "") -> None:
    """Write half a checkpoint, then fail."""
    with checkpoint.all_or_nothing(folder, resume_hint=resume_hint):
        folder.mkdir()
        (folder / "half").write_text("x")
        raise error


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "the disk is full"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "the disk is full"),
        (OSError(errno.EACCES, "Permission denied"), "Permission denied"),
        (RuntimeError("PytorchStreamWriter failed writing file data/3"), "the disk is full"),
    ],
)
def test_a_failed_write_leaves_nothing_and_says_why(make, tmp_path, error, reason):
    make(1)
    folder = tmp_path / "checkpoint-2"
    with pytest.raises(CheckpointError, match=reason) as caught:
        fail(folder, error, resume_hint="Resume from checkpoint-1.")
    assert not folder.exists()
    assert checkpoint.last_checkpoint(tmp_path).name == "checkpoint-1"
    assert str(caught.value).endswith("Resume from checkpoint-1.")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), ValueError("a bug"), RuntimeError("other")])
def test_other_failures_pass_but_leave_nothing(tmp_path, error):
    folder = tmp_path / "checkpoint-2"
    with pytest.raises(type(error)) as caught:
        fail(folder, error)
    assert caught.value is error
    assert not folder.exists()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has a device that is full")
def test_a_full_disk_for_real(tmp_path):
    """torch.save on a device that is always full."""
    folder = tmp_path / "checkpoint-1"

    def write() -> None:
        with checkpoint.all_or_nothing(folder, resume_hint=""):
            folder.mkdir()
            with Path("/dev/full").open("wb") as handle:
                torch.save({"w": torch.zeros(100000)}, handle)

    with pytest.raises(CheckpointError, match="the disk is full"):
        write()
    assert not folder.exists()


def test_what_to_resume_from(make, tmp_path):
    assert checkpoint.resolve_resume(tmp_path, None) is None
    assert checkpoint.resolve_resume(tmp_path, False) is None
    with pytest.raises(CheckpointError, match="nothing to resume"):
        checkpoint.resolve_resume(tmp_path, "last")
    one, two = make(1), make(2, complete=False)
    for wanted in (True, "last", "true", "True"):
        assert checkpoint.resolve_resume(tmp_path, wanted) == one
    assert checkpoint.resolve_resume(tmp_path, str(one)) == one
    with pytest.raises(
        CheckpointError, match=r"incomplete.*use an earlier one: \['checkpoint-1'\]"
    ):
        checkpoint.resolve_resume(tmp_path, str(two))
    with pytest.raises(CheckpointError, match=r"no such folder.*checkpoint-1"):
        checkpoint.resolve_resume(tmp_path, str(tmp_path / "checkpoint-7"))
