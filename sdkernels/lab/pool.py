"""Cells one after the other or in worker processes, and what a signal does to them."""

from __future__ import annotations

import multiprocessing
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path
from typing import Any

from sdkernels.lab.cell import work
from sdkernels.lab.conditions import Cell
from sdkernels.lab.scales import Scale


def run_all(
    scale: Scale, cells: Sequence[Cell], output: Path, *, workers: int, device: str
) -> Iterator[tuple[Cell, float]]:
    """Each cell and the seconds it took, as they finish; what a cell raises, this raises.

    Workers that are still busy when this ends early are terminated; a cell's file is whole or
    absent.
    """
    if min(workers, len(cells)) <= 1:
        for cell in cells:
            yield cell, work(scale, cell, output, device)
        return
    # Spawned: a forked child would inherit torch's threads in an unknown state.
    context = multiprocessing.get_context("spawn")
    others = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(
        min(workers, len(cells)), mp_context=context, initializer=_leave_signals_to_the_parent
    )
    try:
        futures = {pool.submit(work, scale, cell, output, device): cell for cell in cells}
        for future in as_completed(futures):
            yield futures[future], future.result()
    except BaseException:
        for child in set(multiprocessing.active_children()) - others:
            child.terminate()
        raise
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def _leave_signals_to_the_parent() -> None:
    # Ctrl-C reaches all processes of a terminal; the parent decides what becomes of the workers.
    signal.signal(signal.SIGINT, signal.SIG_IGN)


class Stop(BaseException):
    """A signal asked the run to stop; not an `Exception`, so that nothing takes it for a failure.

    Attributes:
        signal_number: the signal.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal_number)
        self.signal_number = signal_number


class StopOnSignal:
    """A `with` block in which SIGINT and SIGTERM raise `Stop`.

    Outside the main thread, where Python allows no handlers, it does nothing.
    """

    def __enter__(self) -> None:
        self._previous: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _handle(self, number: int, _frame: Any) -> None:
        raise Stop(number)
