"""Comparing mathematical answers with math-verify, in a process that can be killed.

A model can write expressions that take sympy hours or all the memory (`9**9**9**9`). One persistent
worker per process does the comparing; when it is over its time it is killed, and the next call
starts another one.
"""

from __future__ import annotations

import atexit
import json
import os
import queue
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any, Literal

START_SECONDS = 60.0

Outcome = Literal["equal", "different", "unreadable", "timeout", "crash"]


class MathChecker:
    """A worker process and the thread that reads its replies. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None
        self._replies: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._owner = os.getpid()

    def compare(self, reference: str, answer: str, *, limit_seconds: float) -> Outcome:
        """Whether two LaTeX expressions (without dollar signs) are equal.

        `timeout` and `crash` (out of memory, most often) say that the worker had to be replaced.

        Raises:
            RuntimeError: the worker can't start, because math-verify is not installed.
        """
        with self._lock:
            self._ensure_started()
            request = {"reference": reference, "answer": answer, "limit_seconds": limit_seconds}
            try:
                reply = self._exchange(json.dumps(request), limit_seconds)
            except queue.Empty:
                self._kill()
                return "timeout"
            except OSError:
                reply = None
            if reply is None:
                self._kill()
                return "crash"
            if reply["equal"]:
                return "equal"
            return "different" if reply["parsed"] else "unreadable"

    def close(self) -> None:
        """End the worker; the next `compare` starts another one."""
        with self._lock:
            self._kill()

    def _ensure_started(self) -> None:
        if self._owner != os.getpid():  # after a fork the worker belongs to the parent
            self._process = None
            self._owner = os.getpid()
        if self._process is not None and self._process.poll() is None:
            return
        self._kill()
        self._replies = queue.SimpleQueue()
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("math_worker.py"))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            encoding="utf-8",
            start_new_session=True,  # Ctrl-C is for the trainer
        )
        threading.Thread(
            target=_pump, args=(self._process.stdout, self._replies), daemon=True
        ).start()
        try:
            hello = json.loads(self._replies.get(timeout=START_SECONDS) or "{}")
        except queue.Empty:
            hello = {}
        if not hello.get("ready"):
            self._kill()
            raise RuntimeError(
                "the worker that compares mathematical answers did not start: "
                f"{hello.get('error', 'no reply')}. Is math-verify installed "
                "(pip install 'sdkernels[train]')?"
            )

    def _exchange(self, line: str, limit_seconds: float) -> dict[str, Any] | None:
        assert self._process is not None
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()
        reply = self._replies.get(timeout=limit_seconds)
        return json.loads(reply) if reply else None

    def _kill(self) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        process.kill()
        process.wait()
        for stream in (process.stdin, process.stdout):
            try:
                if stream is not None:
                    stream.close()
            except OSError:  # closing flushes, into a pipe that has no reader any more
                continue


def _pump(stream: Any, replies: queue.SimpleQueue[str]) -> None:
    """Pass lines on; an empty one says that the worker is gone."""
    try:
        for line in stream:
            replies.put(line)
    finally:
        replies.put("")


checker = MathChecker()
atexit.register(checker.close)
