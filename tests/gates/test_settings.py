"""What a setting of a gate may be."""

import math
from typing import Any

import numpy as np
import pytest

import sdkernels as sd
from sdkernels.gates.settings import at_least_1


def test_counts_are_whole_numbers() -> None:
    assert at_least_1("min_tokens", 1) == 1
    assert at_least_1("min_tokens", np.int64(8)) == 8


@pytest.mark.parametrize("value", [0, -1, 2.5, 8.0, math.nan, math.inf, "8", True, None])
def test_other_counts_are_refused_by_name(value: Any) -> None:
    with pytest.raises(ValueError, match=rf"min_tokens={value!r} is not accepted; give a whole"):
        at_least_1("min_tokens", value)


def test_gates_refuse_them() -> None:
    with pytest.raises(ValueError, match=r"min_tokens=2\.5 is not accepted"):
        sd.gates.EntropySign(quantile=0.5, min_tokens=2.5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"warmup_steps='8' is not accepted"):
        sd.gates.Schmitt(warmup_steps="8")  # type: ignore[arg-type]
