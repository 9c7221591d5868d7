import signal

import pytest

from sdkernels.lab.pool import Stop, StopOnSignal


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_raises_stop_inside_the_block_only(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stop) as caught, StopOnSignal():
        signal.raise_signal(number)
    assert caught.value.signal_number == number
    assert signal.getsignal(number) is before


def test_stop_is_not_taken_for_a_failure() -> None:
    assert not issubclass(Stop, Exception)
