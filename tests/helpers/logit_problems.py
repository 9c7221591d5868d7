"""Logit problems for kernel tests: slabs of both models, what the oracle makes of them, and how a
result of the kernels is judged.

The kernels run on this machine's device, or in Triton's interpreter where there is none. Shape
letters: C tokens, V vocabulary, D hidden, K ids a token.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from sdkernels.engine.stats import DIFFERENTIABLE
from sdkernels.rows import RowBackend, RowSpec, Side
from sdkernels.rows.torch_rows import TorchRows
from sdkernels.testing import assert_close_to_reference, input_families

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


@dataclass(frozen=True)
class LogitProblem:
    """One chunk: both sides, ids, and what is asked for."""

    student: Side
    teacher: Side | None
    ids_CK: Tensor | None
    spec: RowSpec = RowSpec(torch.float32)  # noqa: RUF009 - frozen

    def run(
        self,
        rows: RowBackend,
        dtype: torch.dtype | None = None,
        only: tuple[str, ...] = tuple(DIFFERENTIABLE),
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Statistics and gradient of the statistics named in `only`, with random coefficients per
        token; with `dtype` the same numbers in that dtype, computed in it.
        """
        problem = self if dtype is None else self._in(dtype)
        stats, state = rows.forward(
            _fresh(problem.student),
            None if problem.teacher is None else _fresh(problem.teacher),
            problem.ids_CK,
            None,
            problem.spec,
        )
        stats = {name: value.clone() for name, value in stats.items()}
        names = [name for name in stats if name in only]
        return stats, rows.backward(state, coefficients(stats, names)).clone()

    def reordered(self, seed: int, only: tuple[str, ...]) -> tuple[dict[str, Tensor], Tensor]:
        """`run` of torch rows in float32 with the vocabulary in another order; the gradient is in
        that of the problem.
        """
        vocab = self.student.raw_CV.shape[1]
        generator = torch.Generator().manual_seed(seed)
        order_V = torch.randperm(vocab, generator=generator).to(self.student.raw_CV.device)
        place_V = order_V.argsort()
        ids_CK = self.ids_CK
        if ids_CK is not None:
            known = (ids_CK >= 0) & (ids_CK < vocab)
            ids_CK = torch.where(known, place_V[ids_CK.clamp(0, vocab - 1)], ids_CK)
        teacher = None if self.teacher is None else _columns(self.teacher, order_V)
        other = replace(
            self, student=_columns(self.student, order_V), teacher=teacher, ids_CK=ids_CK
        )
        stats, grad_CV = other.run(TorchRows(), torch.float32, only)
        return stats, grad_CV[:, place_V]

    def _in(self, dtype: torch.dtype) -> LogitProblem:
        spec = replace(self.spec, compute_dtype=dtype, gradient_dtype=None)
        teacher = None if self.teacher is None else _cast(self.teacher, dtype)
        return replace(self, student=_cast(self.student, dtype), teacher=teacher, spec=spec)


def coefficients(stats: dict[str, Tensor], names: list[str]) -> dict[str, Tensor]:
    """A random number per token and statistic, of both signs; never ones."""
    found = {}
    for seed, name in enumerate(sorted(names)):
        generator = torch.Generator().manual_seed(seed)
        value = torch.randn(stats[name].shape, generator=generator, dtype=torch.float32)
        found[name] = value.to(stats[name].device, stats[name].dtype)
    return found


def family(
    name: str,
    tokens: int = 5,
    vocab: int = 300,
    *,
    dtype: torch.dtype = torch.float32,
    ids: int = 1,
    spec: RowSpec = RowSpec(torch.float32),  # noqa: B008 - frozen
) -> LogitProblem:
    """A problem with logits from one of `sdkernels.testing.input_families`, rounded to `dtype`."""
    inputs = input_families()[name](tokens, 16, vocab, dtype=torch.float64)
    generator = torch.Generator().manual_seed(3)
    ids_CK = torch.randint(vocab, (tokens, ids), generator=generator).to(DEVICE)
    student = Side(inputs.logits().to(DEVICE, dtype))
    return LogitProblem(student, Side(inputs.teacher_logits().to(DEVICE, dtype)), ids_CK, spec)


def assert_like_oracle(
    problem: LogitProblem,
    rows: RowBackend,
    only: tuple[str, ...] = tuple(DIFFERENTIABLE),
) -> None:
    """Statistics and gradient of `rows` against torch rows in float64, by what torch rows lose in
    float32, in the worst of sixteen orders of the vocabulary.

    The sums of a few rows can be right to the last digit by luck, in one order of summation and on
    one machine: twice such an error says nothing.
    """
    stats, grad = problem.run(rows, only=only)
    exact, exact_grad = problem.run(TorchRows(), torch.float64, only)
    plain = [problem.run(TorchRows(), torch.float32, only)]
    if problem.spec.topk is None:  # of equal logits another order lists others
        plain += [problem.reordered(seed, only) for seed in range(15)]
    assert stats.keys() == exact.keys()
    for name, value in stats.items():
        if name == "topk_ids":
            assert torch.equal(value, exact[name])
            continue
        same = _worst([one[name] for one, _ in plain], exact[name])
        assert_close_to_reference(value, exact[name], same, name=name, check_stride=False)
    same = _worst([one for _, one in plain], exact_grad).to(grad.dtype)
    assert_close_to_reference(grad, exact_grad, same, kind="gradient", name="gradient")


def _worst(found: list[Tensor], exact: Tensor) -> Tensor:
    """The one that is furthest from `exact`; a NaN is further than any number."""
    finite = exact.isfinite()
    return max(found, key=lambda one: float((one - exact)[finite].norm().nan_to_num(math.inf)))


def _columns(side: Side, order_V: Tensor) -> Side:
    bias_V = None if side.bias_V is None else side.bias_V[order_V]
    return replace(side, raw_CV=side.raw_CV[:, order_V], bias_V=bias_V)


def _cast(side: Side, dtype: torch.dtype) -> Side:
    bias_V = None if side.bias_V is None else side.bias_V.to(dtype)
    return replace(side, raw_CV=side.raw_CV.to(dtype), bias_V=bias_V)


def _fresh(side: Side) -> Side:
    """A copy with the same strides, since both passes may overwrite an owned slab."""
    return replace(side, raw_CV=side.raw_CV.clone()) if side.owned else side
