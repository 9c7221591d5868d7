"""Answers of a rollout server on disk, so that a run that was cut short does not ask twice."""

from __future__ import annotations

import hashlib
import json
import threading
from pathlib import Path
from typing import Any

from sdkernels.train.records import JsonLines

JOURNAL_OF_RANK = "server-rollouts-{rank:05d}.jsonl"
JOURNALS = "server-rollouts-*.jsonl"


class Journal:
    """Answers by request, each on disk as soon as it is there; safe to use from several threads.

    A request names its seed, and that the step of the run, so the same request is the same rollout
    of the same weights.
    """

    def __init__(self, file: Path) -> None:
        self._log = JsonLines(file)
        self._lock = threading.Lock()
        lines = self._log.read()
        self._answers = {line["request"]: line["answer"] for line in lines}
        if lines:
            # A line that a kill cut short would swallow the next one.
            self._log.rewrite(lines)

    def get(self, request: dict[str, Any]) -> dict[str, Any] | None:
        """The answer to a request, None if it is not finished."""
        return self._answers.get(_key(request))

    def add(self, request: dict[str, Any], answer: dict[str, Any]) -> None:
        """Keep an answer."""
        with self._lock:
            self._answers[_key(request)] = answer
            self._log.append({"request": _key(request), "answer": answer})

    def clear(self) -> None:
        """Forget all answers: a checkpoint holds what came of them."""
        with self._lock:
            self._answers.clear()
            self._log.file.unlink(missing_ok=True)


def _key(request: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
