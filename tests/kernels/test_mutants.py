"""Each kernel with one mistake in it: the comparison with the oracle must notice."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from helpers.logit_problems import DEVICE, assert_like_oracle, family
from helpers.mutant_kernels import mutated_rows

from sdkernels.rows import RowSpec

MUTANTS = {
    "sign of the gap": ("statistics.py", "gap = x_t - x_s", "gap = x_s - x_t"),
    "pivot not subtracted from e x": ("statistics.py", "e * finite, 0)", "e * z, 0)"),
    "chosen ids of one part lost": (
        "statistics.py",
        "mine = (ids >= first) & (ids < last)",
        "mine = (ids > first) & (ids < last)",
    ),
    "tail of the vocabulary counted": (
        "transform.py",
        'return tl.where(valid, z, float("-inf")), slope',
        "return z, slope",
    ),
    "scale applied twice": (
        "transform.py",
        "z = t * post",
        "z = t * post * post",
    ),
    "slope of the softcap": (
        "transform.py",
        "slope = tl.fma(-t, t, 1.0) * (pre * post)",
        "slope = (1.0 - t) * (pre * post)",
    ),
    "temperature left out of the slope of the softcap": (
        "transform.py",
        "slope = tl.fma(-t, t, 1.0) * (pre * post)",
        "slope = tl.fma(-t, t, 1.0) * pre",
    ),
    "sign of tanh lost where it is no polynomial": (
        "transform.py",
        "(size | sign)",
        "size",
    ),
    "rescale dropped": (
        "merge.py",
        "rescale = exp(bounded(distance))",
        "rescale = tl.where(distance > -1e30, 1.0, 0.0)",
    ),
    "pivots of the parts forgotten in the entropy": (
        "merge.py",
        " + times(mass, distance)\n",
        "\n",
    ),
    "pivots of the parts forgotten in the gap": (
        "merge.py",
        "weighed(rescale, gap, there) + weighed(mass, distance_gap, there)",
        "weighed(rescale, gap, there)",
    ),
    "sign of KL(S||T)": ("merge.py", "-gap_s - shift", "gap_s + shift"),
    "weights of the mixture exchanged": (
        "mixture.py",
        "small_t = share_t <= share_s",
        "small_t = share_t > share_s",
    ),
    "clip from the wrong side": ("mixture.py", "clipped = entry > clip", "clipped = entry < clip"),
    "sign of the entropy's gradient": (
        "gradient.py",
        "dz -= times(p_s, surprise)",
        "dz += surprise",
    ),
    "KL subtracted instead of added": (
        "gradient.py",
        "excess = defined(r) + tl.load(kept_ptr + KL_STUDENT_TEACHER)",
        "excess = defined(r) - tl.load(kept_ptr + KL_STUDENT_TEACHER)",
    ),
    "teacher's softmax forgotten": ("gradient.py", "pair += (p_s - p_t)", "pair += p_s"),
    "onehot of the first of repeated ids only": (
        "gradient.py",
        "for other in range(NUM_IDS):",
        "for other in range(1):",
    ),
    "slope forgotten": ("gradient.py", "dz = (dz + onehot) * slope", "dz = dz + onehot"),
    "onehot at the wrong id": (
        "gradient.py",
        "target = out_ptr + row * out_stride + ids",
        "target = out_ptr + row * out_stride + (ids + 1) % vocab",
    ),
}


@pytest.mark.parametrize("name", MUTANTS)
def test_a_mutant_is_killed(name: str, tmp_path: Path) -> None:
    rows = mutated_rows(tmp_path, *MUTANTS[name])
    with pytest.raises(AssertionError):
        _check(rows)


def _check(rows: object) -> None:
    """One problem that has everything: several parts, a bias, a softcap, scales, repeated ids."""
    problem = family("small_random", 2, 5001, ids=3, spec=RowSpec(torch.float32, 0.3, 0.001))
    assert problem.teacher is not None
    assert problem.ids_CK is not None
    ids_CK = problem.ids_CK.clone()
    ids_CK[:, 2] = ids_CK[:, 1]
    ids_CK[:, 0] = 4096  # the first column of a part
    # A softcap that some of the logits reach.
    changes = {"scale": 1.3, "softcap": 2.0, "temperature": 0.8}
    student = replace(problem.student, bias_V=torch.randn(5001, device=DEVICE), **changes)
    teacher = replace(problem.teacher, **changes)
    assert_like_oracle(replace(problem, student=student, teacher=teacher, ids_CK=ids_CK), rows)


def test_the_kernels_as_they_are_survive(tmp_path: Path) -> None:
    _check(mutated_rows(tmp_path, "merge.py", "IDS_TILE = 64", "IDS_TILE = 32"))
