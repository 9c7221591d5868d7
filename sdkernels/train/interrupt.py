"""Ctrl-C and SIGTERM: the first one asks for an orderly stop, the second one stops at once."""

from __future__ import annotations

import signal
import sys
import threading
from types import FrameType
from typing import Any

HANDLED = (signal.SIGINT, signal.SIGTERM)


class StepAbandonedError(Exception):
    """The step in progress is dropped; nothing of it has reached the weights."""


class StopRequest:
    """A `with` block in which the first SIGINT or SIGTERM sets `signal_number` instead of killing
    the process.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __init__(self) -> None:
        self.signal_number: int | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> StopRequest:
        self.signal_number = None
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._handle) for number in HANDLED}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}

    @property
    def requested(self) -> bool:
        """Whether a stop was asked for."""
        return self.signal_number is not None

    def abandon_if_requested(self) -> None:
        """Raise `StepAbandonedError` if a stop was asked for."""
        if self.requested:
            raise StepAbandonedError

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.signal_number = number
        # A handler may run in the middle of a print, where stderr's own lock is taken.
        if sys.__stderr__ is not None:
            sys.__stderr__.write(
                f"\n{signal.Signals(number).name}: saving a checkpoint, then stopping; once more "
                "stops at once, without one\n"
            )
