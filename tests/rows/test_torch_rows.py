"""The torch rows on the inputs that break naive code, through the public functions.

Families come from `sdkernels.testing.input_families`. float64 is compared with the oracle to 1e-12
or to what cancellation leaves, float32 with plain torch in float32.
"""

import math
import weakref
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from helpers.oracle import Problem, assert_stats_exact, make_problem
from torch import Tensor

import sdkernels as sd
from sdkernels.rows import RowSpec, Side
from sdkernels.rows.torch_rows import TorchRows
from sdkernels.testing import Inputs, assert_close_to_reference, assert_exact, input_families

FAMILIES = input_families()
T, D, V = 13, 16, 67
DIVERGENCES = ("kl_teacher_student", "kl_student_teacher", "jsd", "clipped_kl_teacher_student")
INFINITE = {"teacher_without_support": {"kl_student_teacher"}}


def problem_of(inputs: Inputs, **settings: Any) -> Problem:
    def leaf(value: Tensor | None) -> Tensor | None:
        return None if value is None else value.clone().requires_grad_()

    return Problem(
        hidden=leaf(inputs.hidden_TD),
        weight=leaf(inputs.weight_VD),
        bias=leaf(inputs.bias_V),
        teacher_hidden=inputs.teacher_hidden_TD,
        teacher_weight=inputs.teacher_weight_VD,
        teacher_bias=inputs.teacher_bias_V,
        targets=torch.arange(len(inputs.hidden_TD)),
        jsd_beta=0.3,
        entry_clip=0.01,
        **settings,
    )


def weighted(name: str, problem: Problem) -> Tensor:
    """A random signed weight per token, and 0 for a statistic that is infinite there."""
    generator = torch.Generator().manual_seed(3)
    value = vars(problem.to(torch.float64).reference_stats())[name]
    weights = torch.randn(value.shape, generator=generator, dtype=torch.float64)
    return weights.masked_fill(~value.isfinite(), 0.0).to(problem.hidden.dtype)


def grads(problem: Problem, value: Tensor, upstream: Tensor) -> dict[str, Tensor]:
    leaves = problem.leaves()
    found = torch.autograd.grad(value, list(leaves.values()), upstream)
    return dict(zip(leaves, found, strict=True))


@pytest.mark.parametrize("elements", [1, 5 * V, 10**6])
@pytest.mark.parametrize("family", FAMILIES)
def test_families_in_float64(family: str, elements: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdkernels.rows.blocks.BLOCK_ELEMENTS", elements)
    problem = problem_of(FAMILIES[family](T, D, V, dtype=torch.float64))
    # What the oracle itself loses: it adds the offset of 512, or forms a logit near 800.
    rtol = 1e-10 if family in ("constant_shift", "near_minus_100", "near_plus_100") else 1e-12
    if family == "teacher_equals_student":
        reference = problem.reference_stats()
        assert max(abs(vars(reference)[name]).max() for name in DIVERGENCES) < 1e-14
    else:
        assert_stats_exact(problem, problem.engine_stats(), rtol=rtol)
    for name in ("logp", "entropy", "lse", *DIVERGENCES):
        if family == "teacher_equals_student" and name in DIVERGENCES:
            continue
        upstream = weighted(name, problem)
        if not upstream.any():
            continue
        if name in INFINITE.get(family, ()):
            assert problem.engine_stats()[name].isposinf().all()
            continue
        got = grads(problem, problem.engine_stats()[name], upstream)
        expected = grads(problem, vars(problem.reference_stats())[name], upstream)
        for leaf, grad in got.items():
            assert_exact(grad, expected[leaf], rtol=10 * rtol, name=f"{leaf} from {name}")


@pytest.mark.parametrize("family", FAMILIES)
def test_families_in_float32(family: str) -> None:
    """As near to the exact result as plain torch in float32, in value and gradient."""
    problem = problem_of(FAMILIES[family](T, D, V, dtype=torch.float32))
    wide = problem.to(torch.float64)
    exact, plain = vars(wide.reference_stats()), vars(problem.reference_stats())
    stats = problem.engine_stats()
    for name in ("logp", "entropy", "lse", *DIVERGENCES):
        if family == "teacher_equals_student" and name in DIVERGENCES:
            continue
        assert_close_to_reference(stats[name], exact[name], plain[name], name=name)
        upstream = weighted(name, problem)
        if not upstream.any() or name in INFINITE.get(family, ()):
            continue
        got = grads(problem, problem.engine_stats()[name], upstream)
        expected = grads(wide, vars(wide.reference_stats())[name], upstream.double())
        same = grads(problem, vars(problem.reference_stats())[name], upstream)
        for leaf, grad in got.items():
            assert_close_to_reference(
                grad, expected[leaf], same[leaf], kind="gradient", name=f"{leaf} from {name}"
            )


@pytest.mark.parametrize(
    ("family", "dtype"),
    [
        (family, dtype)
        for family in FAMILIES
        for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16)
        if (family, dtype) != ("wide_range", torch.float16)  # beyond its range
    ],
)
def test_invariants(family: str, dtype: torch.dtype) -> None:
    inputs = FAMILIES[family](T, D, V, dtype=dtype)
    problem = problem_of(inputs)
    stats = problem.engine_stats()
    eps = torch.finfo(stats.entropy.dtype).eps
    for name, value in stats.items():
        assert not value.isnan().any(), name
    assert (stats.logp <= 0).all()
    assert (stats.teacher_logp <= 0).all()
    allowed = V if inputs.bias_V is None else int(inputs.bias_V.isfinite().sum())
    assert (stats.entropy >= 0).all()
    assert (stats.entropy <= math.log(allowed) * (1 + 4 * eps)).all()
    for name in DIVERGENCES[:3]:
        assert (stats[name] >= -64 * eps).all(), name
    assert (stats.jsd <= math.log(2) * (1 + 4 * eps)).all()
    assert (stats.clipped_kl_teacher_student <= stats.kl_teacher_student + 64 * eps).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_gradients_of_each_row_sum_to_zero(family: str) -> None:
    """All but that of lse: a constant added to all logits changes nothing."""
    inputs = FAMILIES[family](T, D, V, dtype=torch.float64)
    logits = inputs.logits()
    for name in ("logp", "entropy", *DIVERGENCES):
        side = Side(logits.clone())
        teacher = Side(inputs.teacher_logits(), owned=False)
        spec = RowSpec(torch.float64, jsd_beta=0.3, entry_clip=0.01)
        stats, state = TorchRows().forward(side, teacher, torch.arange(T)[:, None], None, spec)
        if name in INFINITE.get(family, ()):
            continue
        dz = TorchRows().backward(state, {name: torch.ones_like(stats[name])})
        assert dz.isfinite().all()
        # Terms as large as the divergence cancel in each entry.
        assert (dz.sum(-1).abs() <= 1e-14 * (1 + stats[name].flatten().abs())).all(), name


# --- a constant added to all logits ---------------------------------------------------------------


@pytest.mark.parametrize("shift", [1e4, -1e4])
def test_a_common_offset_changes_no_digit(shift: float) -> None:
    """Logits that are multiples of 1/64 stay exact under a shift of 10^4 in float32."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randint(-300, 300, (T, V), generator=generator) / 64
    teacher = torch.randint(-300, 300, (T, V), generator=generator) / 64
    ids = torch.randint(V, (T, 1), generator=generator)
    spec = RowSpec(torch.float32, jsd_beta=0.3, entry_clip=0.01, topk=4)
    results = []
    for offset in (0.0, shift):
        sides = Side(student + offset), Side(teacher - offset)
        stats, state = TorchRows().forward(*sides, ids, None, spec)
        stats = {name: value.clone() for name, value in stats.items()}
        coefs = {name: torch.ones_like(stats[name]) for name in ("logp", "entropy", *DIVERGENCES)}
        results.append((stats, TorchRows().backward(state, coefs)))
    (plain, dz), (shifted, shifted_dz) = results
    for name, value in plain.items():
        if name.endswith("lse"):
            sign = 1 if name == "lse" else -1
            torch.testing.assert_close(shifted[name], value + sign * shift, rtol=1e-6, atol=0)
        else:
            assert torch.equal(shifted[name], value), name
    assert torch.equal(dz, shifted_dz)


# --- teacher equal to student ---------------------------------------------------------------------


EQUAL: list[tuple[str, dict[str, Any]]] = [
    (teacher, settings)
    for teacher in ("hidden", "logits")
    for settings in (
        {},
        {"temperature": 0.7},
        {"scale": 0.3, "softcap": 2.0},
        {"banned": True},
        {"valid_vocab": 40},
        {"entry_clip": 1e-9},
    )
    # The logits of a LogitsTeacher come behind scale and softcap, which it has none of.
    if teacher == "hidden" or "softcap" not in settings
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize(("teacher", "settings"), EQUAL)
def test_teacher_equal_to_student_is_exactly_nothing(
    teacher: str, settings: dict[str, Any], name: str, dtype: torch.dtype
) -> None:
    problem = make_problem((9,), D=8, V=50, teacher=None, dtype=dtype, topk=None)
    problem.bias = problem.bias if settings.get("banned") else None
    if problem.bias is not None:
        problem.bias.data[::3] = -torch.inf
    problem.entry_clip, problem.jsd_beta = settings.get("entry_clip", 0.1), 0.3
    problem.temperature = settings.get("temperature", 1.0)
    problem.scale, problem.softcap = settings.get("scale", 1.0), settings.get("softcap")
    problem.valid_vocab = settings.get("valid_vocab")
    if teacher == "hidden":
        twin = sd.HiddenTeacher(problem.hidden.detach(), problem.head())
    else:
        wide = torch.promote_types(dtype, torch.float32)
        weight_VD = problem.weight.detach()[: problem.valid_vocab].to(wide)
        logits = torch.mm(problem.hidden.detach().to(wide), weight_VD.t())
        twin = sd.LogitsTeacher(logits if problem.bias is None else logits + problem.bias.detach())
    loss, stats = problem.engine_loss(
        lambda s, tok: tok.w * s[name], teacher=twin, tokens={"w": torch.linspace(-3, 5, 9)}
    )
    assert torch.equal(stats[name], torch.zeros(9, dtype=stats[name].dtype))
    loss.backward()
    for leaf, value in problem.leaves().items():
        assert torch.equal(value.grad, torch.zeros_like(value)), leaf


def test_tiny_divergences() -> None:
    """JSD keeps its digits; the KLs are exact to the rounding of logsumexp, as in plain torch."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(100, 500, generator=generator)
    teacher = logits + 1e-3 * torch.randn(100, 500, generator=generator)
    spec = RowSpec(torch.float32, jsd_beta=0.5)
    stats, _ = TorchRows().forward(Side(logits.clone()), Side(teacher.clone()), None, None, spec)
    wide = RowSpec(torch.float64, jsd_beta=0.5)
    sides = Side(logits.double()), Side(teacher.double())
    exact, _ = TorchRows().forward(*sides, None, None, wide)
    assert exact["jsd"].max() < 1e-6
    torch.testing.assert_close(stats["jsd"].double(), exact["jsd"], rtol=1e-3, atol=0)
    s, t = logits.log_softmax(-1), teacher.log_softmax(-1)
    plain = {
        "kl_teacher_student": (t.exp() * (t - s)).sum(-1),
        "kl_student_teacher": (s.exp() * (s - t)).sum(-1),
    }
    for name, value in plain.items():
        error = (stats[name].double() - exact[name]).norm()
        assert error <= 1.1 * (value.double() - exact[name]).norm(), name


# --- rows without a distribution, and without mass somewhere --------------------------------------


def rows_with(student: Tensor, teacher: Tensor) -> tuple[dict[str, Tensor], Any]:
    spec = RowSpec(student.dtype, jsd_beta=0.3, entry_clip=0.01, topk=2)
    ids = torch.zeros(len(student), 1, dtype=torch.int64)
    return TorchRows().forward(Side(student.clone()), Side(teacher.clone()), ids, None, spec)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_row_of_minus_infinity(dtype: torch.dtype) -> None:
    """Its neighbours are not touched; its own numbers are defined, its gradient is 0."""
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(4, 7, generator=generator, dtype=dtype)
    teacher = torch.randn(4, 7, generator=generator, dtype=dtype)
    clean, clean_state = rows_with(student, teacher)
    empty_student, empty_teacher = student.clone(), teacher.clone()
    empty_student[[1, 3]] = -torch.inf
    empty_teacher[[2, 3]] = -torch.inf
    stats, state = rows_with(empty_student, empty_teacher)
    for name, value in stats.items():
        assert not value.isnan().any(), name
        assert torch.equal(value[0], clean[name][0]), name
    assert stats["entropy"][[1, 3]].tolist() == [0.0, 0.0]
    assert stats["lse"][[1, 3]].tolist() == [-torch.inf] * 2
    assert stats["logp"][[1, 3], 0].tolist() == [-torch.inf] * 2
    assert stats["teacher_entropy"][[2, 3]].tolist() == [0.0, 0.0]
    # Rows: both fine, no student, no teacher, neither.
    assert stats["kl_teacher_student"][1:].tolist() == [torch.inf, 0.0, 0.0]
    assert stats["kl_student_teacher"][1:].tolist() == [0.0, torch.inf, 0.0]
    assert stats["jsd"][1:].isfinite().all()
    for name in ("logp", "entropy", "lse", "topk_logp", *DIVERGENCES):
        coefs = {name: torch.ones_like(clean[name])}
        dz = TorchRows().backward(rows_with(empty_student, empty_teacher)[1], coefs)
        expected = TorchRows().backward(rows_with(student, teacher)[1], coefs)
        assert torch.equal(dz[0], expected[0]), name
        assert not dz[[1, 3]].any(), name
        if name in DIVERGENCES:
            assert not dz[2].any(), name
    assert clean_state is not state


def test_a_teacher_without_mass_where_the_student_has_some() -> None:
    student = torch.tensor([[0.0, 1.0, 2.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, -torch.inf, 1.0]], dtype=torch.float64)
    stats, state = rows_with(student, teacher)
    s, t = student.softmax(-1), teacher.softmax(-1)
    by_hand = sum(t[0, i] * (t[0, i] / s[0, i]).log() for i in (0, 2))
    assert_exact(stats["kl_teacher_student"][0], by_hand)
    assert stats["kl_student_teacher"].item() == torch.inf
    m = 0.3 * t + 0.7 * s
    jsd = 0.7 * (s * (s / m).log()).sum() + 0.3 * sum(
        t[0, i] * (t[0, i] / m[0, i]).log() for i in (0, 2)
    )
    assert_exact(stats["jsd"][0], jsd)
    dz = TorchRows().backward(state, {"kl_teacher_student": torch.ones(1, dtype=torch.float64)})
    assert_exact(dz, s - t)


def test_a_student_without_mass_where_the_teacher_has_some() -> None:
    student = torch.tensor([[0.0, -torch.inf, 2.0]], dtype=torch.float64)
    teacher = torch.tensor([[0.0, 1.0, 1.0]], dtype=torch.float64)
    stats, state = rows_with(student, teacher)
    s, t = student.softmax(-1), teacher.softmax(-1)
    assert stats["kl_teacher_student"].item() == torch.inf
    by_hand = sum(s[0, i] * (s[0, i] / t[0, i]).log() for i in (0, 2))
    assert_exact(stats["kl_student_teacher"][0], by_hand)
    clipped = (t * (t.log() - s.log())).clamp(max=0.01).sum(-1)
    assert_exact(stats["clipped_kl_teacher_student"], clipped)
    dz = TorchRows().backward(state, {"kl_student_teacher": torch.ones(1, dtype=torch.float64)})
    assert dz.isfinite().all()
    assert dz[0, 1] == 0.0


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_an_infinite_divergence_with_weight_zero_sends_nothing(weight: float) -> None:
    student = torch.randn(3, 5, dtype=torch.float64)
    teacher = torch.randn(3, 5, dtype=torch.float64)
    teacher[1, 2] = -torch.inf
    _, state = rows_with(student, teacher)
    coefs = torch.tensor([1.0, weight, 1.0], dtype=torch.float64)
    dz = TorchRows().backward(state, {"kl_student_teacher": coefs})
    assert dz[[0, 2]].isfinite().all()
    assert dz[[0, 2]].any()
    assert bool((dz[1] == 0).all()) == (weight == 0.0)


# --- slabs ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("owned", [True, False])
@pytest.mark.parametrize("slab", [torch.float32, torch.bfloat16])
def test_only_owned_slabs_are_written_to(owned: bool, slab: torch.dtype) -> None:
    student, teacher = torch.randn(6, 9).to(slab), torch.randn(6, 9).to(slab)
    before = student.clone(), teacher.clone()
    sides = (
        Side(student, torch.randn(9), 0.5, 3.0, 0.7, owned=owned),
        Side(teacher, torch.randn(9), 0.5, 3.0, 0.7, owned=False),
    )
    rows = TorchRows()
    stats, state = rows.forward(*sides, None, None, RowSpec(torch.float32, jsd_beta=0.5))
    dz = rows.backward(state, {"jsd": torch.ones_like(stats["jsd"])})
    assert torch.equal(teacher, before[1])
    assert torch.equal(student, before[0]) == (not owned)
    assert (dz.data_ptr() == student.data_ptr()) == owned


def test_scratch_grows_with_the_chunk_to_a_limit() -> None:
    sizes = [
        TorchRows().scratch_bytes(n, 1000, RowSpec(torch.float32))
        for n in (1, 8, 9, 100, 10**5, 10**6)
    ]
    assert sizes == sorted(sizes)
    assert sizes[-1] == sizes[-2]
    assert TorchRows().scratch_bytes(1, 10**6, RowSpec(torch.float64)) >= 8 * 10**6


EVERY_LOSS = RowSpec(torch.float32, jsd_beta=0.7, entry_clip=0.01, topk=2)


def one_of_everything(rows: TorchRows, seed: int) -> tuple[dict[str, Tensor], Any]:
    """Statistics and state of 40 tokens, logits copied and softcapped."""
    generator = torch.Generator().manual_seed(seed)

    def side() -> Side:
        return Side(torch.randn(40, V, generator=generator), softcap=3.0, owned=False)

    return rows.forward(side(), side(), torch.full((40, 1), seed), None, EVERY_LOSS)


def coefficients(stats: dict[str, Tensor]) -> dict[str, Tensor]:
    names = ("logp", "entropy", "lse", "topk_logp", *DIVERGENCES)
    return {
        name: torch.linspace(-1.0, 1.0, stats[name].numel()).view_as(stats[name]) for name in names
    }


def test_buffers_take_what_the_budget_counts_for_them() -> None:
    rows = TorchRows()
    stats, state = one_of_everything(rows, 1)
    rows.backward(state, coefficients(stats))
    held = sum(buffer.nbytes for buffer in state.scratch.buffers.values())
    # The factor of the entropy and the slope of the softcap are two more, made anew.
    fresh = 2 * state.scratch.rows * V * 4
    assert 0.9 < (held + fresh) / rows.scratch_bytes(40, V, EVERY_LOSS) <= 1.0


def test_buffers_serve_the_next_chunk_and_then_go() -> None:
    rows = TorchRows()
    _, first = one_of_everything(rows, 1)
    _, second = one_of_everything(rows, 2)
    assert second.scratch is first.scratch
    gone = weakref.ref(first.scratch)
    del first, second
    assert gone() is None


def test_a_state_outlives_what_the_next_chunk_does_to_its_buffers() -> None:
    alone = TorchRows()
    stats, state = one_of_everything(alone, 1)
    expected = alone.backward(state, coefficients(stats))
    rows = TorchRows()
    stats, state = one_of_everything(rows, 1)
    _, other = one_of_everything(rows, 2)
    rows.backward(other, {"lse": torch.ones(40)})
    assert torch.equal(rows.backward(state, coefficients(stats)), expected)


@pytest.mark.parametrize(
    ("raw", "spec"),
    [
        (torch.empty(41 * 8, V), EVERY_LOSS),
        (torch.empty(40, V + 1), EVERY_LOSS),
        (torch.empty(40, V), RowSpec(torch.float64)),
    ],
    ids=["more rows", "another vocabulary", "another dtype"],
)
def test_buffers_do_not_serve_what_they_do_not_fit(raw: Tensor, spec: RowSpec) -> None:
    rows = TorchRows()
    _, state = one_of_everything(rows, 1)
    stats, other = rows.forward(Side(raw.zero_()), None, None, None, spec)
    assert other.scratch is not state.scratch
    assert stats["lse"] == pytest.approx(math.log(raw.shape[1]))


def test_threads_have_buffers_of_their_own() -> None:
    rows = TorchRows()
    _, state = one_of_everything(rows, 1)
    with ThreadPoolExecutor(1) as pool:
        _, other = pool.submit(one_of_everything, rows, 2).result()
    assert other.scratch is not state.scratch


def test_a_huge_vocabulary_with_one_token() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(1, 2, generator=generator, requires_grad=True)
    weight = torch.randn(300_000, 2, generator=generator)
    stats = sd.token_stats(hidden, weight, targets=torch.tensor([299_999]))
    logits = (hidden @ weight.t()).double()
    assert stats.lse.item() == pytest.approx(logits.logsumexp(-1).item(), rel=1e-6)
    assert stats.logp.item() == pytest.approx(logits.log_softmax(-1)[0, -1].item(), rel=1e-6)


def test_overflow_of_float16_logits_is_noticed() -> None:
    hidden, weight = torch.full((2, 4), 300.0).half(), torch.full((5, 4), 300.0).half()
    with pytest.raises(
        ValueError, match=r"token \[0\] is nan; statistics of it that are not finit"
    ):
        sd.token_loss(hidden, weight, lambda s, tok: s.entropy, slab_dtype="model")
    loss, _ = sd.token_loss(hidden, weight, lambda s, tok: s.entropy)
    assert loss.item() == pytest.approx(2 * math.log(5))
