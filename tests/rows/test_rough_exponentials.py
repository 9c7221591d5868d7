"""The Triton rows with exponentials as rough as a GPU's: the interpreter's are good to every digit.

`ex2.approx`, which 2^t is on NVIDIA, is good to 2 ulp (CUDA C++ programming guide, "Mathematical
functions": exp2f) and gives 0 below the smallest normal number. `rsqrt.approx` is good to 2^-22.9
(PTX ISA).
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers.logit_problems import DEVICE, LogitProblem, assert_like_oracle, family

from sdkernels.rows import RowSpec, Side
from sdkernels.rows.triton_rows import TritonRows
from sdkernels.testing import input_families

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="a device has exponentials of its own")

EVERYTHING = RowSpec(torch.float32, jsd_beta=0.3, entry_clip=0.001)
ERROR, ROOT_ERROR = 2.0**-22, 2.0**-22.9


def _off(exact: np.ndarray, argument: np.ndarray, error: float) -> np.ndarray:
    """`exact`, off by up to `error`: by the same for the same argument, as on a device."""
    scattered = np.ascontiguousarray(argument).view(np.uint32) * np.uint32(2654435761)
    off = scattered.astype(np.float64) / 2.0**31 - 1.0
    return np.where(exact == 1, exact, (exact * (1.0 + error * off)).astype(np.float32))


def _rough(t: np.ndarray) -> np.ndarray:
    exact = np.exp2(t)
    if exact.dtype != np.float32:
        return exact
    return np.where(exact < np.finfo(np.float32).tiny, np.float32(0.0), _off(exact, t, ERROR))


def _rough_root(x: np.ndarray) -> np.ndarray:
    return _off(1 / np.sqrt(x), x, ROOT_ERROR)


@pytest.fixture
def rough_exponentials(monkeypatch: pytest.MonkeyPatch) -> None:
    from triton.runtime.interpreter import InterpreterBuilder

    for name, function in (("create_exp2", _rough), ("create_rsqrt", _rough_root)):
        monkeypatch.setattr(
            InterpreterBuilder, name, lambda self, x, of=function: self.unary_op(x, of)
        )


@pytest.mark.usefixtures("rough_exponentials")
@pytest.mark.parametrize("far", [-92.0, -300.0])
@pytest.mark.parametrize("vocab", [300, 5000])
def test_what_the_student_bans_is_infinite_however_little_the_teacher_gives_it(
    vocab: int, far: float
) -> None:
    """Too little for a number in float32; in a part of its own, the part's sums are, too."""
    teacher_CV = torch.full((3, vocab), far)
    teacher_CV[:, 0] = 0.0
    student_CV = torch.zeros(3, vocab)
    student_CV[0, -1] = -torch.inf
    student_CV[1] = -torch.inf
    problem = LogitProblem(Side(student_CV), Side(teacher_CV), None, EVERYTHING)
    stats, _ = problem.run(TritonRows())
    assert stats["kl_teacher_student"].isinf().tolist() == [True, True, False]
    clipped = stats["clipped_kl_teacher_student"][1].item()
    assert clipped == pytest.approx(vocab * 0.001, rel=1e-5)
    swapped = LogitProblem(Side(teacher_CV), Side(student_CV), None, EVERYTHING)
    stats, _ = swapped.run(TritonRows())
    assert stats["kl_student_teacher"].isinf().tolist() == [True, True, False]


@pytest.mark.usefixtures("rough_exponentials")
@pytest.mark.parametrize("name", input_families())
def test_every_input_family_agrees_with_the_oracle_all_the_same(name: str) -> None:
    assert_like_oracle(family(name, 3, 9001, ids=2, spec=EVERYTHING), TritonRows())


@pytest.mark.usefixtures("rough_exponentials")
@pytest.mark.parametrize("reach", [1.0, 20.0, 50.0])
def test_softcaps_agree_too(reach: float) -> None:
    """Logits up to the cap and beyond, through both ways to tanh."""
    problem = family("small_random", 3, 4001, ids=2, spec=EVERYTHING)
    student, teacher = (
        replace(side, softcap=softcap, scale=reach / side.raw_CV.abs().max().item())
        for side, softcap in ((problem.student, 30.0), (problem.teacher, 25.0))
    )
    assert_like_oracle(replace(problem, student=student, teacher=teacher), TritonRows())
