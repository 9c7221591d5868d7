"""The least number of matrix products of each case."""

import pytest

from sdkernels.bench.cases import CASES


@pytest.mark.parametrize(
    ("case", "trainable", "frozen"),
    [
        ("logprob-entropy-forward", 1, 1),
        ("logprob-entropy", 3, 2),
        ("nll", 3, 2),
        ("grpo", 3, 2),
        ("kl-teacher-student", 4, 3),
        ("kl-student-teacher", 4, 3),
        ("jsd", 4, 3),
        ("sdpo-topk", 4, 3),
        ("dasd", 4, 3),
    ],
)
def test_products(case, trainable, frozen):
    assert CASES[case].products(frozen=False) == trainable
    assert CASES[case].products(frozen=True) == frozen


def test_flops_of_a_setting(setting):
    assert setting("jsd", tokens=10, shape="3x7").flops == 8 * 10 * 3 * 7
    assert setting("nll", tokens=10, shape="3x7", frozen=True).flops == 4 * 10 * 3 * 7
