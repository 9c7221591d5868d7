"""Signals in this process."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from sdkernels.train.interrupt import StepAbandonedError, StopRequest


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_signal_asks_and_the_second_stops(number, capfd):
    before = signal.getsignal(number)
    with StopRequest() as stop:
        stop.abandon_if_requested()
        os.kill(os.getpid(), number)
        assert stop.requested
        assert stop.signal_number == number
        with pytest.raises(StepAbandonedError):
            stop.abandon_if_requested()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), number)
    assert signal.getsignal(number) is before


def test_a_new_block_starts_without_a_request():
    stop = StopRequest()
    with stop:
        os.kill(os.getpid(), signal.SIGINT)
    assert stop.requested  # still to be seen after the block
    with stop:
        assert not stop.requested


def test_other_threads_install_no_handlers():
    seen = []

    def work() -> None:
        with StopRequest() as stop:
            seen.append((stop.requested, signal.getsignal(signal.SIGINT)))

    before = signal.getsignal(signal.SIGINT)
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert seen == [(False, before)]
