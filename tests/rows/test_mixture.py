"""JSD and the entry-clipped KL where their formulas are hard: rows without mass, NaN, and mixtures
that are nearly one of the two models. Every backend, each against the formulas written out.

Shape letters: C tokens, V vocabulary.
"""

from __future__ import annotations

import math

import pytest
import torch
from helpers.logit_problems import DEVICE, LogitProblem, coefficients
from torch import Tensor

from sdkernels.rows import BACKENDS, RowBackend, RowSpec, Side, resolve_backend
from sdkernels.testing import assert_close_to_reference

INF, NAN = torch.inf, torch.nan
DIVERGENCES = ("kl_teacher_student", "kl_student_teacher", "jsd", "clipped_kl_teacher_student")
CLIP = 2.0**-7  # sums of it are exact
V = 300


@pytest.fixture(params=[name for name in BACKENDS if name != "auto"])
def rows(request: pytest.FixtureRequest) -> RowBackend:
    if request.param == "compiled" and DEVICE.type != "cpu":
        pytest.skip("compiled rows are for the CPU")
    return resolve_backend(request.param, DEVICE)


def _logits(seed: int, tokens: int, spread: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(tokens, V, generator=generator)).to(DEVICE)


def _run(
    rows: RowBackend, student_CV: Tensor, teacher_CV: Tensor, spec: RowSpec
) -> tuple[dict[str, Tensor], Tensor]:
    problem = LogitProblem(Side(student_CV), Side(teacher_CV), None, spec)
    return problem.run(rows, only=("jsd", "clipped_kl_teacher_student"))


def _error(found: Tensor, exact: Tensor) -> float:
    """Relative, of all entries together."""
    return float((found - exact).norm() / exact.norm())


# What a row of one kind of student and one of teacher gives, in the order of DIVERGENCES; a "dead"
# row has no logit above -inf. Of the teacher's V - 2 entries with mass each contributes the clip.
CASES: dict[tuple[str, str], tuple[float, ...]] = {
    ("dead", "alive"): (INF, 0.0, 0.0, (V - 2) * CLIP),
    ("alive", "dead"): (0.0, INF, 0.0, 0.0),
    ("dead", "dead"): (0.0, 0.0, 0.0, 0.0),
    ("nan", "alive"): (NAN,) * 4,
    ("alive", "nan"): (NAN,) * 4,
    ("nan", "nan"): (NAN,) * 4,
    ("nan", "dead"): (NAN,) * 4,
    ("dead", "nan"): (NAN,) * 4,
}


def test_rows_without_mass_and_rows_with_nan(rows: RowBackend) -> None:
    def slab(seed: int, kinds: list[str]) -> Tensor:
        logits_CV = _logits(seed, len(kinds))
        logits_CV[:, 5:7] = -INF
        logits_CV[[kind == "dead" for kind in kinds]] = -INF
        logits_CV[[kind == "nan" for kind in kinds], 11] = NAN
        return logits_CV

    kinds = [("alive", "alive"), *CASES]
    student_CV, teacher_CV = slab(0, [s for s, _ in kinds]), slab(1, [t for _, t in kinds])
    spec = RowSpec(torch.float32, jsd_beta=0.3, entry_clip=CLIP)
    stats, grad_CV = _run(rows, student_CV, teacher_CV, spec)
    clean, clean_grad = _run(rows, student_CV[:1], teacher_CV[:1], spec)
    for index, name in enumerate(DIVERGENCES):
        expected = torch.tensor([case[index] for case in CASES.values()], device=DEVICE)
        found = stats[name][1:]
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True, msg=name)
        assert _error(stats[name][:1], clean[name]) < 1e-6, name
    assert _error(grad_CV[:1], clean_grad) < 1e-6
    for kind, grad_V in zip(kinds[1:], grad_CV[1:], strict=True):
        if "dead" not in kind:
            assert grad_V.isnan().any(), kind
        elif "nan" not in kind or kind[0] == "dead":
            assert not grad_V.any(), kind


def test_entries_without_mass(rows: RowBackend) -> None:
    """Both have some, only the student has none, only the teacher has none, neither has any."""
    student_CV = torch.tensor([[0.0, -INF, 2.0, -INF]], device=DEVICE)
    teacher_CV = torch.tensor([[0.0, 1.0, -INF, -INF]], device=DEVICE)
    spec = RowSpec(torch.float32, jsd_beta=0.3, entry_clip=0.25)
    stats, grad_CV = _run(rows, student_CV, teacher_CV, spec)
    s, t = student_CV[0].double().softmax(-1), teacher_CV[0].double().softmax(-1)
    assert t[0] * (t[0] / s[0]).log() < 0.25
    clipped = t[0] * (t[0] / s[0]).log() + 0.25
    m = 0.3 * t + 0.7 * s
    jsd = 0.3 * sum(t[v] * (t[v] / m[v]).log() for v in (0, 1))
    jsd += 0.7 * sum(s[v] * (s[v] / m[v]).log() for v in (0, 2))
    for name, exact in (("clipped_kl_teacher_student", clipped), ("jsd", jsd)):
        torch.testing.assert_close(stats[name][0].double(), exact, rtol=1e-6, atol=0)
    assert grad_CV.isfinite().all()


# --- mixtures that are nearly one of the models ---------------------------------------------------


@pytest.mark.parametrize("beta", [1e-6, 0.3, 0.5, 0.9])
def test_the_forms_of_the_log_ratios_meet_where_u_is_a_half(beta: float) -> None:
    from sdkernels.kernels.mixture import mixture_numbers

    share_t, share_s, near = mixture_numbers(beta)
    assert share_t == beta
    assert share_s == 1 - beta
    assert near is not None
    assert min(share_t, share_s) * math.expm1(near) == pytest.approx(0.5, rel=1e-12)


def _reference(
    student_CV: Tensor, teacher_CV: Tensor, beta: float, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """JSD with the mixture by logaddexp, and its gradient by autograd for the same coefficients."""
    leaf_CV = student_CV.detach().clone().to(dtype).requires_grad_()
    s, t = leaf_CV.log_softmax(-1), teacher_CV.to(dtype).log_softmax(-1)
    m = torch.logaddexp(t + math.log(beta), s + math.log1p(-beta))
    jsd_C = beta * (t.exp() * (t - m)).sum(-1) + (1 - beta) * (s.exp() * (s - m)).sum(-1)
    coef_C = coefficients({"jsd": jsd_C.detach()}, ["jsd"])["jsd"]
    return jsd_C.detach(), torch.autograd.grad(jsd_C, leaf_CV, coef_C)[0]


def _peaked(seed: int) -> Tensor:
    logits_CV = _logits(seed, 20, 3.0)
    logits_CV[torch.arange(20), torch.arange(20)] += 12.0
    return logits_CV


PAIRS = {
    "far apart": (_logits(0, 20, 4.0), _logits(1, 20, 4.0)),
    "nearly the same": (_logits(0, 20, 4.0), _logits(0, 20, 4.0) + _logits(1, 20, 0.1)),
    "of different spread": (_logits(0, 20, 10.0), _logits(1, 20, 0.5)),
    "peaked at one entry": (_peaked(0), _peaked(1)),
}
NEAR_0 = (0.3, 1e-3, 1e-4, 1e-6, 1e-8)
NEAR_1 = (0.999, 0.9999, 1 - 1e-6, 1 - 1e-8)


@pytest.mark.parametrize("beta", [0.5, *NEAR_0[:-1], *NEAR_1[:-1]])
@pytest.mark.parametrize("pair", ["far apart", "of different spread", "peaked at one entry"])
def test_jsd_is_as_exact_as_plain_torch(rows: RowBackend, pair: str, beta: float) -> None:
    """Of other pairs and shares plain torch in float32 keeps no digit to compare with."""
    student_CV, teacher_CV = PAIRS[pair]
    stats, grad_CV = _run(rows, student_CV, teacher_CV, RowSpec(torch.float32, jsd_beta=beta))
    exact, plain = (
        _reference(student_CV, teacher_CV, beta, dtype) for dtype in (torch.float64, torch.float32)
    )
    assert_close_to_reference(stats["jsd"], exact[0], plain[0], name="jsd")
    assert_close_to_reference(grad_CV, exact[1], plain[1], kind="gradient", name="gradient")


@pytest.mark.parametrize("beta", [0.5, *NEAR_0, *NEAR_1])
@pytest.mark.parametrize("pair", PAIRS)
def test_jsd_keeps_its_digits_whatever_the_share(rows: RowBackend, pair: str, beta: float) -> None:
    """Also where 1 - beta is 1 in float32, or beta is."""
    student_CV, teacher_CV = PAIRS[pair]
    stats, grad_CV = _run(rows, student_CV, teacher_CV, RowSpec(torch.float32, jsd_beta=beta))
    exact, exact_grad_CV = _reference(student_CV, teacher_CV, beta, torch.float64)
    assert _error(stats["jsd"], exact) < 5e-6
    assert _error(grad_CV, exact_grad_CV) < 2e-5


@pytest.mark.parametrize("beta", [*NEAR_0, *NEAR_1])
def test_equal_models_have_no_jsd_and_no_gradient_whatever_the_share(
    rows: RowBackend, beta: float
) -> None:
    logits_CV = _logits(0, 5, 4.0)
    logits_CV[:, 7] = -INF
    stats, grad_CV = _run(rows, logits_CV, logits_CV.clone(), RowSpec(torch.float32, jsd_beta=beta))
    assert not stats["jsd"].any()
    assert not grad_CV.any()


@pytest.mark.parametrize("beta", [1e-18, *NEAR_0, *NEAR_1])
def test_disjoint_models_have_the_entropy_of_the_shares(rows: RowBackend, beta: float) -> None:
    """Log-ratios of +-inf: b log(1/b) + (1 - b) log(1/(1 - b))."""
    student_CV, teacher_CV = _logits(0, 4), _logits(1, 4)
    student_CV[:, ::2] = -INF
    teacher_CV[:, 1::2] = -INF
    stats, grad_CV = _run(rows, student_CV, teacher_CV, RowSpec(torch.float32, jsd_beta=beta))
    exact = -beta * math.log(beta) - (1 - beta) * math.log1p(-beta)
    torch.testing.assert_close(
        stats["jsd"].double(), torch.full_like(stats["jsd"], exact).double(), rtol=2e-6, atol=0
    )
    assert grad_CV.isfinite().all()
