"""The Triton rows with exponentials as rough as a GPU's: the interpreter's are good to every digit.

`ex2.approx`, which 2^t is on NVIDIA, is good to 2 ulp (CUDA C++ programming guide, "Mathematical
functions": exp2f) and gives 0 below the smallest normal number.
"""

import numpy as np
import pytest
import torch
from helpers.logit_problems import DEVICE, assert_like_oracle, family

from sdkernels.rows import RowSpec
from sdkernels.rows.triton_rows import TritonRows
from sdkernels.testing import input_families

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="a device has exponentials of its own")

EVERYTHING = RowSpec(torch.float32, jsd_beta=0.3, entry_clip=0.001)
ERROR = 2.0**-22


def _rough(t: np.ndarray) -> np.ndarray:
    """2^t, off by up to ERROR either way: by the same for the same t, as a device is."""
    exact = np.exp2(t)
    if exact.dtype != np.float32:
        return exact
    scattered = np.ascontiguousarray(t).view(np.uint32) * np.uint32(2654435761)
    off = scattered.astype(np.float64) / 2.0**31 - 1.0
    rough = (exact * (1.0 + ERROR * off)).astype(np.float32)
    return np.where(
        exact < np.finfo(np.float32).tiny, np.float32(0.0), np.where(exact == 1, exact, rough)
    )


@pytest.fixture
def rough_exponentials(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    monkeypatch.setattr(InterpreterBuilder, "create_exp2", lambda self, t: self.unary_op(t, _rough))


@pytest.mark.usefixtures("rough_exponentials")
@pytest.mark.parametrize("name", input_families())
def test_every_input_family_agrees_with_the_oracle_all_the_same(name: str) -> None:
    assert_like_oracle(family(name, 3, 9001, ids=2, spec=EVERYTHING), TritonRows())
