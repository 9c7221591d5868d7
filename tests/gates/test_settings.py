"""What a setting of a gate may be."""

import math
import re
from typing import Any

import numpy as np
import pytest

import sdkernels as sd
from sdkernels.gates.settings import at_least_1, nats


def test_counts_are_whole_numbers() -> None:
    assert at_least_1("min_tokens", 1) == 1
    assert at_least_1("min_tokens", np.int64(8)) == 8


@pytest.mark.parametrize("value", [0, -1, 2.5, 8.0, math.nan, math.inf, "8", True, None])
def test_other_counts_are_refused_by_name(value: Any) -> None:
    with pytest.raises(ValueError, match=rf"min_tokens={value!r} is not accepted; give a whole"):
        at_least_1("min_tokens", value)


@pytest.mark.parametrize("value", ["nope", "0.2", None, [0.2], True, math.nan])
def test_other_numbers_are_refused_by_name_and_as_they_came(value: Any) -> None:
    shown = re.escape(repr(value))
    with pytest.raises(ValueError, match=rf"tau={shown} is not accepted; give a finite number of"):
        nats("tau", value)
    with pytest.raises(ValueError, match=rf"rho={shown} is not accepted; give a number in \[0, 1"):
        sd.gates.DirectionAdaptive(value)
    with pytest.raises(ValueError, match=rf"off_ratio={shown} is not accepted; give a number > 0"):
        sd.gates.Schmitt(value)


def test_numbers_of_other_libraries_are_numbers() -> None:
    assert nats("tau", np.float32(0.5)) == 0.5
    assert sd.gates.DirectionAdaptive(np.float64(0.5)).rho == 0.5
    with pytest.raises(ValueError, match=r"sigma=\[1\] is not accepted; give a scale in nats > 0"):
        sd.gates.DirectionAdaptive(sigma=[1])  # type: ignore[arg-type]


def test_gates_refuse_them() -> None:
    with pytest.raises(ValueError, match=r"min_tokens=2\.5 is not accepted"):
        sd.gates.EntropySign(quantile=0.5, min_tokens=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"warmup_steps='8' is not accepted"):
        sd.gates.Schmitt(warmup_steps="8")  # type: ignore[arg-type]
