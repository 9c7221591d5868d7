"""JSD and the entry-clipped KL where their formulas are hard: rows without mass, NaN, and mixtures
that are nearly one of the two models. Every backend, each against the formulas written out.

Shape letters: C tokens, V vocabulary.
"""

from __future__ import annotations

import pytest
import torch
from helpers.logit_problems import DEVICE, LogitProblem
from torch import Tensor

from sdkernels.rows import BACKENDS, RowBackend, RowSpec, Side, resolve_backend

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
        assert torch.equal(stats[name][:1], clean[name]), name
    assert torch.equal(grad_CV[:1], clean_grad)
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
