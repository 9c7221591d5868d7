"""Checkpoint folders that are either complete or not there.

transformers writes a checkpoint file by file and takes the newest folder for the last one, whole or
not. Here a folder counts once its marker is there, which is written last, after everything else is
on disk, and lists every file with its size. Folders without it are ignored and removed.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdkernels.train.errors import CheckpointError

MARKER = "complete.json"
TEACHER_FILE = "teacher.safetensors"
_NAME = re.compile(r"checkpoint-(\d+)")


def step_of(folder: Path) -> int | None:
    """Step number in the name of a checkpoint folder, None if it is none."""
    match = _NAME.fullmatch(folder.name)
    return int(match.group(1)) if match else None


def is_complete(folder: Path) -> bool:
    """Whether the marker is there and every file it lists has its size."""
    try:
        listed = json.loads((folder / MARKER).read_text(encoding="utf-8"))["files"]
        return all((folder / name).stat().st_size == size for name, size in listed.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def checkpoints(run_folder: Path) -> list[Path]:
    """Complete checkpoints of a run, oldest first."""
    return [folder for folder in _folders(run_folder) if is_complete(folder)]


def last_checkpoint(run_folder: Path) -> Path | None:
    """The newest complete checkpoint of a run."""
    return next(reversed(checkpoints(run_folder)), None)


def incomplete_checkpoints(run_folder: Path) -> list[Path]:
    """Folders that a killed process left."""
    return [folder for folder in _folders(run_folder) if not is_complete(folder)]


def rotate(run_folder: Path, limit: int | None, *, keep: str | None = None) -> None:
    """Delete the oldest complete checkpoints beyond `limit`; `keep` (the best one) stays."""
    if limit is None or limit < 1:
        return
    for folder in checkpoints(run_folder)[:-limit]:
        if keep is None or folder.resolve() != Path(keep).resolve():
            # The marker goes first: what a kill leaves behind is then seen to be incomplete.
            (folder / MARKER).unlink(missing_ok=True)
            shutil.rmtree(folder)


def mark_complete(folder: Path, step: int) -> None:
    """Flush every file to disk, then write the marker in one rename."""
    sizes = {}
    for file in sorted(path for path in folder.rglob("*") if path.is_file()):
        _flush(file)
        sizes[str(file.relative_to(folder))] = file.stat().st_size
    draft = folder / f".{MARKER}"
    draft.write_text(json.dumps({"step": step, "files": sizes}, indent=1), encoding="utf-8")
    _flush(draft)
    draft.rename(folder / MARKER)


@contextlib.contextmanager
def all_or_nothing(folder: Path, *, resume_hint: str) -> Iterator[None]:
    """Remove `folder` if the block fails, and turn a failure to write into one line.

    Raises:
        CheckpointError: something could not be written. Any other exception passes through.
    """
    try:
        yield
    except BaseException as error:
        shutil.rmtree(folder, ignore_errors=True)
        if not _is_write_failure(error):
            raise
        full = _is_full(error)
        reason = "the disk is full" if full else " ".join(str(error).split())[:200]
        raise CheckpointError(
            f"could not save {folder}: {reason}; the partial folder was removed, earlier "
            f"checkpoints are untouched. {'Make room first. ' if full else ''}{resume_hint}"
        ) from error


def _is_write_failure(error: BaseException) -> bool:
    # torch reports a failed write as RuntimeError, safetensors as an exception of its own.
    if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
        return True
    return _is_cut_short(error)


def _is_cut_short(error: BaseException) -> bool:
    """Whether torch's zip writer wrote less than it meant to: how it meets a full disk, without
    saying so.
    """
    text = str(error)
    return isinstance(error, RuntimeError) and (
        "PytorchStreamWriter" in text or "unexpected pos" in text
    )


def _is_full(error: BaseException) -> bool:
    chain: list[BaseException] = []
    current: BaseException | None = error
    while current is not None and current not in chain:
        chain.append(current)
        current = current.__cause__ or current.__context__
    codes = {link.errno for link in chain if isinstance(link, OSError)}
    full = {errno.ENOSPC, errno.EDQUOT}
    named = any("No space left" in str(link) for link in chain)
    return bool(codes & full) or named or any(_is_cut_short(link) for link in chain)


def _folders(run_folder: Path) -> list[Path]:
    if not run_folder.is_dir():
        return []
    found = [
        folder for folder in run_folder.iterdir() if folder.is_dir() and step_of(folder) is not None
    ]
    return sorted(found, key=lambda folder: step_of(folder) or 0)


def _flush(file: Path) -> None:
    with file.open("rb") as handle:
        os.fsync(handle.fileno())


def resolve_resume(run_folder: Path, wanted: str | bool | None) -> Path | None:
    """The checkpoint to resume from: a folder by name, or the newest complete one for True, "true"
    or "last".

    Raises:
        CheckpointError: there is none, or the named one is incomplete.
    """
    if wanted is None or wanted is False:
        return None
    if wanted is True or str(wanted).lower() in ("true", "last"):
        found = last_checkpoint(run_folder)
        if found is None:
            raise CheckpointError(
                f"nothing to resume: {run_folder} holds no complete checkpoint; start without "
                "resume_from_checkpoint"
            )
        return found
    folder = Path(wanted)
    if not folder.is_dir():
        near = [path.name for path in checkpoints(folder.parent)]
        raise CheckpointError(
            f"resume_from_checkpoint={wanted}: no such folder; complete ones there: "
            f"{near or 'none'}"
        )
    if not is_complete(folder):
        raise CheckpointError(
            f"resume_from_checkpoint={wanted}: the checkpoint is incomplete (its writing was cut "
            "short); use an earlier one: "
            f"{[path.name for path in checkpoints(folder.parent)] or 'none'}"
        )
    return folder


def save_teacher(folder: Path, state: dict[str, Any]) -> None:
    """Write the teacher's state beside the student's, if it has one."""
    from safetensors.torch import save_file

    if state:
        save_file(
            {name: tensor.cpu().contiguous() for name, tensor in state.items()},
            str(folder / TEACHER_FILE),
        )


def load_teacher(folder: Path) -> dict[str, Any]:
    """What `save_teacher` wrote; empty where the kind of teacher has no state."""
    from safetensors.torch import load_file

    file = folder / TEACHER_FILE
    return load_file(str(file)) if file.is_file() else {}
