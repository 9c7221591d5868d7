"""The merge: any way to cut the vocabulary gives the same statistics; the gate in its epilogue."""

import pytest
import torch
from helpers.logit_problems import DEVICE, family

from sdkernels import gates
from sdkernels.kernels.configs import RowConfig
from sdkernels.kernels.launch import Logits
from sdkernels.kernels.merge import GateThresholds, merge
from sdkernels.kernels.statistics import partial_statistics
from sdkernels.rows.torch_rows import TorchRows
from sdkernels.testing import assert_close_to_reference

TILE = RowConfig(256, 1)


def _logits(name: str, tokens: int, vocab: int) -> tuple[Logits, Logits]:
    problem = family(name, tokens, vocab)
    assert problem.teacher is not None
    return Logits.of(problem.student.raw_CV), Logits.of(problem.teacher.raw_CV)


def _slice(logits: Logits, lo: int, hi: int) -> Logits:
    return Logits.of(logits.raw_CV[:, lo:hi])


@pytest.mark.parametrize("name", ["small_random", "leading_block_banned", "peaked"])
def test_vocabulary_slices_joined_are_the_whole_to_the_bit(name: str) -> None:
    """What a tensor-parallel group does after its all-gather."""
    student, teacher = _logits(name, 3, 1500)
    whole, rows_CN = merge(
        partial_statistics(student, teacher, None, TILE).partials_CFP, vocab=1500
    )
    shards = [
        partial_statistics(_slice(student, lo, hi), _slice(teacher, lo, hi), None, TILE)
        for lo, hi in ((0, 512), (512, 1024), (1024, 1500))
    ]
    joined = torch.cat([shard.partials_CFP for shard in shards], dim=-1)
    found, found_rows_CN = merge(joined, vocab=1500)
    for statistic, value in whole.items():
        assert torch.equal(found[statistic], value), statistic
    assert torch.equal(found_rows_CN.nan_to_num(7.0), rows_CN.nan_to_num(7.0))


@pytest.mark.parametrize("tile", [256, 512, 2048])
def test_any_width_of_the_parts_agrees_with_the_oracle(tile: int) -> None:
    problem = family("peaked", 4, 1500)
    student, teacher = _logits("peaked", 4, 1500)
    partials = partial_statistics(student, teacher, None, RowConfig(tile, 1)).partials_CFP
    found, _ = merge(partials, vocab=1500)
    exact, _ = problem.run(TorchRows(), torch.float64)
    plain, _ = problem.run(TorchRows(), torch.float32)
    for name, value in found.items():
        assert_close_to_reference(value, exact[name], plain[name], name=name)


@pytest.mark.parametrize(("rule", "with_sigma"), [("sign", False), ("sign", True), ("tanh", True)])
def test_the_epilogue_writes_the_gates_direction(rule: str, with_sigma: bool) -> None:
    student, _ = _logits("small_random", 8, 300)
    partials = partial_statistics(student, None, None).partials_CFP
    entropy = merge(partials, vocab=300)[0]["entropy"]
    tau = entropy + torch.tensor([0.5, 0.0, -0.5, 0.01, -0.01, 3.0, -3.0, 0.5], device=DEVICE)
    sigma = torch.tensor([1.0, 1.0, 0.5, 0.1, 0.1, 2.0, 2.0, 0.0], device=DEVICE)
    gate = GateThresholds(rule, tau, sigma if with_sigma else None)
    found = merge(partials, vocab=300, gate=gate)[0]["direction"]
    expected = gates.direction(entropy, tau, gate.sigma_C, rule=rule)  # type: ignore[arg-type]
    if rule == "sign":
        assert torch.equal(found, expected)
    else:
        exact = gates.direction(entropy.double(), tau.double(), sigma.double(), rule="tanh")
        assert_close_to_reference(found, exact, expected)
