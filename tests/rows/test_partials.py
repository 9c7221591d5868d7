"""One merge for split rows and vocabulary slices: the torch twin against the kernel and float64."""

import itertools
from dataclasses import replace

import pytest
import torch
from helpers.logit_problems import DEVICE, family

from sdkernels.kernels import merge as kernel
from sdkernels.kernels import partials as layout
from sdkernels.kernels.configs import RowConfig
from sdkernels.kernels.launch import Logits
from sdkernels.kernels.statistics import partial_statistics
from sdkernels.rows import partials
from sdkernels.rows.partials import Partials, merge
from sdkernels.rows.torch_rows import TorchRows
from sdkernels.testing import input_families

VOCAB, TILE = 700, RowConfig(256, 1)


def test_the_layout_is_that_of_the_kernels() -> None:
    names = ("MAX", "SUM", "SUM_X", "TEACHER_MAX", "TEACHER_SUM", "TEACHER_SUM_X", "GAP_T", "GAP_S")
    for name in names:
        assert getattr(partials, name) == getattr(layout, name).value
    assert partials.PAIR_FIELDS == layout.PAIR_FIELDS


@pytest.mark.parametrize("name", input_families())
def test_either_merge_makes_the_same_of_the_kernels_parts(name: str) -> None:
    problem = family(name, 4, VOCAB, ids=2)
    assert problem.teacher is not None
    sums = partial_statistics(
        Logits.of(problem.student.raw_CV), Logits.of(problem.teacher.raw_CV), problem.ids_CK, TILE
    )
    by_kernel, rows_CN = kernel.merge(
        sums.partials_CFP,
        vocab=VOCAB,
        ids_CK=problem.ids_CK,
        chosen_CK=sums.chosen_CK,
        teacher_chosen_CK=sums.teacher_chosen_CK,
    )
    assert sums.chosen_CK is not None
    assert sums.teacher_chosen_CK is not None
    tensors = (sums.partials_CFP, sums.chosen_CK, sums.teacher_chosen_CK)
    by_torch, numbers = merge(Partials(*tensors), vocab=VOCAB, ids_CK=problem.ids_CK)
    exact, _ = merge(
        Partials(*(item.double() for item in tensors)), vocab=VOCAB, ids_CK=problem.ids_CK
    )
    assert by_torch.keys() == by_kernel.keys() == exact.keys()
    for statistic, value in exact.items():
        for found in (by_torch[statistic], by_kernel[statistic]):
            torch.testing.assert_close(found.double(), value, rtol=1e-6, atol=1e-6)
    assert torch.equal(numbers.pivot_C, rows_CN[:, 0])


@pytest.mark.parametrize("bounds", [(0, 700), (0, 1, 300, 700), (0, 350, 350, 700)])
@pytest.mark.parametrize("name", ["small_random", "leading_block_banned", "peaked"])
def test_parts_of_torch_rows_join_to_the_whole(name: str, bounds: tuple[int, ...]) -> None:
    problem = family(name, 4, VOCAB, dtype=torch.float64)
    assert problem.teacher is not None
    exact, _ = problem.run(TorchRows(), torch.float64)
    parts = []
    for lo, hi in itertools.pairwise(bounds):
        z_CV, t_CV = problem.student.raw_CV[:, lo:hi], problem.teacher.raw_CV[:, lo:hi]
        parts.append(_one_part(z_CV, t_CV))
    assert problem.ids_CK is not None
    sums = Partials(
        torch.cat(parts, dim=-1),
        problem.student.raw_CV.gather(-1, problem.ids_CK),
        problem.teacher.raw_CV.gather(-1, problem.ids_CK),
    )
    stats, _ = merge(sums, vocab=VOCAB, ids_CK=problem.ids_CK)
    for statistic, value in stats.items():
        torch.testing.assert_close(value, exact[statistic], rtol=1e-12, atol=1e-13)
    alone, numbers = merge(
        replace(sums, partials_CFP=sums.partials_CFP[:, :3]), vocab=VOCAB, ids_CK=problem.ids_CK
    )
    assert alone.keys() == {"entropy", "lse", "logp"}
    assert numbers.shift_C is None
    for statistic, value in alone.items():
        assert torch.equal(value, stats[statistic])


def _one_part(z_CV: torch.Tensor, t_CV: torch.Tensor) -> torch.Tensor:
    """The sums of a slice, straight from their definition."""
    fields, xs, es = [], [], []
    for logits_CV in (z_CV, t_CV):
        if logits_CV.shape[1]:
            maximum_C = logits_CV.amax(-1)
        else:
            maximum_C = logits_CV.new_full((len(logits_CV),), -torch.inf)
        x_CV = logits_CV - maximum_C.masked_fill(maximum_C == -torch.inf, 0.0)[:, None]
        e_CV = x_CV.exp()
        xs.append(x_CV)
        es.append(e_CV)
        fields += [maximum_C, e_CV.sum(-1), _sum(e_CV, x_CV)]
    fields += [_sum(es[1], xs[1] - xs[0]), _sum(es[0], xs[1] - xs[0])]
    return torch.stack(fields, dim=1)[:, :, None]


def _sum(weight_CV: torch.Tensor, value_CV: torch.Tensor) -> torch.Tensor:
    return torch.where(weight_CV == 0, 0.0, weight_CV * value_CV).sum(-1)


def test_an_unknown_id_is_nan_and_a_row_without_mass_has_none() -> None:
    raw_CV = torch.zeros(2, 5, device=DEVICE)
    raw_CV[1] = -torch.inf
    sums = Partials(_one_part(raw_CV, raw_CV), raw_CV[:, :2].clone(), raw_CV[:, :2].clone())
    ids_CK = torch.tensor([[0, 5], [0, -1]], device=DEVICE)
    stats, _ = merge(sums, vocab=5, ids_CK=ids_CK)
    assert stats["logp"][:, 1].isnan().all()
    assert stats["logp"][1, 0] == -torch.inf
    assert stats["entropy"][1] == 0
    assert stats["kl_teacher_student"].tolist() == [0.0, 0.0]
