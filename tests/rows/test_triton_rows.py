"""The Triton row passes against torch rows in float64: input, shape and view families, exactness.

On a GPU these are tests of the compiled kernels, elsewhere of the interpreted ones.
"""

from dataclasses import replace

import pytest
import torch
from helpers.logit_problems import DEVICE, LogitProblem, assert_like_oracle, family
from helpers.poison import poisoned_memory

from sdkernels.rows import RowSpec, Side, resolve_backend, slab_columns
from sdkernels.rows.torch_rows import TorchRows
from sdkernels.rows.triton_rows import TritonRows
from sdkernels.testing import input_families

__all__ = ["poisoned_memory"]  # a fixture: memory is full of NaN

EVERYTHING = RowSpec(torch.float32, jsd_beta=0.3, entry_clip=0.001)
PARTS = 9001  # three parts of a row, the last one short


@pytest.mark.parametrize("name", input_families())
def test_every_input_family_agrees_with_the_oracle(name: str) -> None:
    assert_like_oracle(family(name, 3, PARTS, ids=2, spec=EVERYTHING), TritonRows())


@pytest.mark.parametrize(
    ("tokens", "vocab"),
    [(1, 1), (33, 2), (7, 127), (2, 128), (2, 129), (1, 4095), (2, 4096), (1, 4097), (4, 50257)],
)
def test_every_shape_agrees_with_the_oracle(tokens: int, vocab: int) -> None:
    assert_like_oracle(family("small_random", tokens, vocab, spec=EVERYTHING), TritonRows())


@pytest.mark.slow
@pytest.mark.parametrize("vocab", [32000, 128256, 151936, 262144])
def test_real_vocabularies_agree_with_the_oracle(vocab: int) -> None:
    assert_like_oracle(family("small_random", 1, vocab, spec=EVERYTHING), TritonRows())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_slabs_in_16_bit_are_read_exactly(dtype: torch.dtype) -> None:
    """Only the gradient is rounded to 16 bits: statistics are held to the float32 standard."""
    spec = EVERYTHING
    if dtype == torch.bfloat16 and DEVICE.type == "cpu":
        # The interpreter truncates where a device rounds to the nearest bfloat16.
        spec = replace(spec, gradient_dtype=torch.float32)
    problem = family("small_random", 3, PARTS, dtype=dtype, spec=spec)
    assert_like_oracle(problem, TritonRows())


@pytest.mark.parametrize(
    "only",
    [
        ("logp",),
        ("entropy",),
        ("lse",),
        ("kl_teacher_student",),
        ("kl_student_teacher",),
        ("jsd",),
        ("clipped_kl_teacher_student",),
        ("logp", "lse"),
        ("entropy", "jsd"),
    ],
)
def test_the_gradient_of_any_combination_agrees_with_the_oracle(only: tuple[str, ...]) -> None:
    assert_like_oracle(family("small_random", 3, 300, spec=EVERYTHING), TritonRows(), only)


@pytest.mark.parametrize("softcap", [None, 5.0])
@pytest.mark.parametrize(("scale", "temperature"), [(1.0, 0.7), (1.7, 1.0), (-0.5, 2.0)])
def test_transforms_agree_with_the_oracle(
    softcap: float | None, scale: float, temperature: float
) -> None:
    problem = family("small_random", 12, 700, ids=3, spec=EVERYTHING)
    bias_V = torch.randn(700, device=DEVICE)
    teacher = problem.teacher
    assert teacher is not None
    problem = replace(
        problem,
        student=replace(
            problem.student, bias_V=bias_V, scale=scale, softcap=softcap, temperature=temperature
        ),
        teacher=replace(teacher, scale=1.2, softcap=softcap, temperature=1.5),
    )
    assert_like_oracle(problem, TritonRows())


@pytest.mark.parametrize("topk_of", ["student", "teacher"])
def test_topk_lists_agree_with_the_oracle(topk_of: str) -> None:
    spec = RowSpec(torch.float32, topk=70, topk_of=topk_of)
    problem = family("small_random", 3, 700, ids=2, spec=spec)
    bias_V = torch.randn(700, device=DEVICE)
    for scale in (1.0, -1.0):
        student = replace(problem.student, bias_V=bias_V, scale=scale)
        assert_like_oracle(replace(problem, student=student), TritonRows())


def test_a_student_alone_agrees_with_the_oracle() -> None:
    problem = family("small_random", 5, PARTS)
    assert_like_oracle(replace(problem, teacher=None), TritonRows())
    assert_like_oracle(replace(problem, teacher=None, ids_CK=None), TritonRows())


def test_repeated_ids_get_the_sum_of_their_coefficients() -> None:
    problem = family("small_random", 3, 300, ids=40)
    assert problem.ids_CK is not None
    ids_CK = problem.ids_CK.clone()
    ids_CK[:, 35] = ids_CK[:, 1] = ids_CK[:, 0]
    assert_like_oracle(replace(problem, ids_CK=ids_CK), TritonRows())


def test_an_id_outside_the_vocabulary_is_nan_and_touches_no_other_token() -> None:
    problem = family("small_random", 3, 300)
    ids_CK = torch.tensor([[5], [-100], [7]], device=DEVICE)
    good = replace(problem, ids_CK=ids_CK.clamp_min(0)).run(TritonRows())
    stats, grad = replace(problem, ids_CK=ids_CK).run(TritonRows())
    assert stats["logp"].isnan().squeeze(-1).tolist() == [False, True, False]
    assert torch.equal(grad[[0, 2]], good[1][[0, 2]])


# --- what must be exact -----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_teacher_equal_to_student_is_exactly_zero(dtype: torch.dtype) -> None:
    problem = family("teacher_equals_student", 4, PARTS, dtype=dtype, spec=EVERYTHING)
    changes = {"scale": 1.3, "softcap": 4.0, "temperature": 0.7}
    assert problem.teacher is not None
    for change in ({}, changes):
        same = replace(
            problem,
            student=replace(problem.student, **change),
            teacher=replace(problem.teacher, **change),
        )
        names = ("kl_teacher_student", "kl_student_teacher", "jsd", "clipped_kl_teacher_student")
        stats, grad = same.run(TritonRows(), only=names)
        for name in names:
            assert (stats[name] == 0).all(), name
        assert (grad == 0).all()


def test_a_constant_added_to_all_logits_changes_nothing() -> None:
    """512 is added without rounding to logits of few digits: the results are the same bits."""
    problem = family("small_random", 3, PARTS, spec=EVERYTHING)
    assert problem.teacher is not None

    def moved(side: Side, offset: float) -> Side:
        return replace(side, raw_CV=(side.raw_CV * 4096).round() / 4096 + offset)

    results = []
    for offset in (0.0, 512.0):
        shifted = replace(
            problem,
            student=moved(problem.student, offset),
            teacher=moved(problem.teacher, -offset),
        )
        stats, grad = shifted.run(TritonRows())
        results.append({**stats, "gradient": grad})
    for name in results[0].keys() - {"lse", "teacher_lse"}:
        assert torch.equal(results[0][name], results[1][name]), name


def test_rows_without_mass_are_defined_as_by_the_oracle() -> None:
    problem = family("small_random", 4, PARTS, spec=EVERYTHING)
    assert problem.teacher is not None
    student_CV, teacher_CV = problem.student.raw_CV.clone(), problem.teacher.raw_CV.clone()
    student_CV[1:3] = -torch.inf
    teacher_CV[2:] = -torch.inf
    problem = replace(
        problem,
        student=replace(problem.student, raw_CV=student_CV),
        teacher=replace(problem.teacher, raw_CV=teacher_CV),
    )
    assert_like_oracle(problem, TritonRows())


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_an_infinite_divergence_with_weight_zero_sends_nothing(weight: float) -> None:
    """Row 1 has an entry that only the student allows, row 2 one that only the teacher allows."""
    problem = family("small_random", 4, 300, spec=EVERYTHING)
    assert problem.teacher is not None
    student_CV, teacher_CV = problem.student.raw_CV.clone(), problem.teacher.raw_CV.clone()
    teacher_CV[1, 7] = -torch.inf
    student_CV[2, 9] = -torch.inf
    sides = (Side(student_CV, owned=False), Side(teacher_CV, owned=False))
    rows = TritonRows()
    stats, state = rows.forward(*sides, None, None, problem.spec)
    infinite = {
        "kl_student_teacher": [False, True, False, False],
        "kl_teacher_student": [False, False, True, False],
    }
    coefs = torch.tensor([1.0, weight, weight, 1.0], device=DEVICE)
    for name in ("kl_student_teacher", "kl_teacher_student", "jsd", "clipped_kl_teacher_student"):
        assert stats[name].isinf().tolist() == infinite.get(name, [False] * 4)
        grad = rows.backward(state, {name: coefs})
        assert grad[[0, 3]].isfinite().all()
        assert grad[[0, 3]].any(-1).all()
        assert grad[1:3].eq(0.0).all(-1).tolist() == [weight == 0.0] * 2, name


def test_a_row_without_mass_touches_no_other_row() -> None:
    problem = family("small_random", 4, PARTS, spec=EVERYTHING)
    assert problem.teacher is not None
    student_CV, teacher_CV = problem.student.raw_CV.clone(), problem.teacher.raw_CV.clone()
    student_CV[1] = -torch.inf
    teacher_CV[2] = -torch.inf
    empty = replace(
        problem,
        student=replace(problem.student, raw_CV=student_CV),
        teacher=replace(problem.teacher, raw_CV=teacher_CV),
    )
    stats, grad = problem.run(TritonRows())
    found, found_grad = empty.run(TritonRows())
    for name, value in stats.items():
        assert torch.equal(found[name][[0, 3]], value[[0, 3]]), name
    assert torch.equal(found_grad[[0, 3]], grad[[0, 3]])
    assert not found_grad[1].any()
    assert found["entropy"][1] == 0
    assert found["kl_teacher_student"][1:3].tolist() == [torch.inf, 0.0]
    assert found["kl_student_teacher"][1:3].tolist() == [0.0, torch.inf]


def test_a_nan_logit_shows_in_its_row_alone() -> None:
    problem = family("small_random", 3, PARTS, spec=EVERYTHING)
    raw_CV = problem.student.raw_CV.clone()
    raw_CV[1, 5000] = torch.nan
    stats, grad = replace(problem, student=replace(problem.student, raw_CV=raw_CV)).run(
        TritonRows()
    )
    names = ("entropy", "lse", "logp", "kl_teacher_student", "kl_student_teacher", "jsd")
    for name in names:
        assert stats[name].reshape(3, -1)[:, 0].isnan().tolist() == [False, True, False], name
    assert grad[1].isnan().any()
    assert grad[[0, 2]].isfinite().all()


# --- invariance and layout ----------------------------------------------------------------------


def test_repetition_batch_and_chunk_change_no_bit() -> None:
    problem = family("small_random", 6, PARTS, ids=2, spec=EVERYTHING)
    whole, whole_grad = problem.run(TritonRows())
    again, again_grad = problem.run(TritonRows())
    assert torch.equal(whole_grad, again_grad)
    for lo, hi in ((0, 1), (4, 5), (2, 6)):
        assert problem.teacher is not None
        assert problem.ids_CK is not None
        rows = TritonRows()
        stats, state = rows.forward(
            replace(problem.student, raw_CV=problem.student.raw_CV[lo:hi].clone()),
            replace(problem.teacher, raw_CV=problem.teacher.raw_CV[lo:hi].clone()),
            problem.ids_CK[lo:hi],
            None,
            problem.spec,
        )
        for name, value in stats.items():
            assert torch.equal(value, whole[name][lo:hi]), name
            assert torch.equal(again[name], whole[name]), name
        ones = {"entropy": torch.ones(hi - lo, device=DEVICE)}
        part_CV = rows.backward(state, ones)
        full_CV = _gradient_of_entropy(problem)
        assert torch.equal(part_CV, full_CV[lo:hi])


def _gradient_of_entropy(problem: LogitProblem) -> torch.Tensor:
    rows = TritonRows()
    student = replace(problem.student, raw_CV=problem.student.raw_CV.clone())
    _, state = rows.forward(student, problem.teacher, None, None, problem.spec)
    return rows.backward(state, {"entropy": torch.ones(len(student.raw_CV), device=DEVICE)})


def _views(raw_CV: torch.Tensor) -> dict[str, torch.Tensor]:
    tokens, vocab = raw_CV.shape
    wide = torch.full((tokens, vocab + 3), torch.nan, device=raw_CV.device, dtype=raw_CV.dtype)
    wide[:, 1 : vocab + 1] = raw_CV
    tall = torch.full((2 * tokens, vocab), torch.nan, device=raw_CV.device, dtype=raw_CV.dtype)
    tall[::2] = raw_CV
    return {
        "columns of a wider tensor": wide[:, 1 : vocab + 1],
        "every other row": tall[::2],
        "transposed": raw_CV.T.contiguous().T,
        "expanded": raw_CV[:1].expand(tokens, vocab),
    }


@pytest.mark.parametrize("view", ["columns of a wider tensor", "every other row", "transposed"])
def test_strided_slabs_are_exact(view: str) -> None:
    problem = family("small_random", 3, 300, ids=2, spec=EVERYTHING)
    assert problem.teacher is not None
    stats, grad = problem.run(TritonRows())
    strided = replace(
        problem,
        student=replace(problem.student, raw_CV=_views(problem.student.raw_CV)[view], owned=False),
        teacher=replace(problem.teacher, raw_CV=_views(problem.teacher.raw_CV)[view], owned=False),
    )
    found, found_grad = strided.run(TritonRows())
    for name, value in stats.items():
        assert torch.equal(found[name], value), name
    assert torch.equal(found_grad, grad)


@pytest.mark.parametrize("dtype", [None, torch.float16])
def test_a_padded_slab_gives_the_same_bits_and_keeps_its_rows_apart(
    dtype: torch.dtype | None,
) -> None:
    """What lies between the rows is NaN before; neither statistics nor gradients see it."""
    spec = replace(EVERYTHING, gradient_dtype=dtype)
    problem = family("small_random", 3, 5001, ids=2, spec=spec)
    assert problem.teacher is not None

    def padded(side: Side) -> Side:
        tokens, vocab = side.raw_CV.shape
        slab = torch.full((tokens, slab_columns(vocab)), torch.nan, device=DEVICE)
        slab[:, :vocab] = side.raw_CV
        return replace(side, raw_CV=slab[:, :vocab], padded=True)

    results = []
    plain = replace(problem.student, raw_CV=problem.student.raw_CV.clone()), problem.teacher
    for student, teacher in (plain, (padded(problem.student), padded(problem.teacher))):
        rows = TritonRows()
        stats, state = rows.forward(student, teacher, problem.ids_CK, None, spec)
        names = ("jsd", "kl_teacher_student", "entropy", "logp")
        grad = rows.backward(state, {name: torch.ones_like(stats[name]) for name in names})
        results.append({**stats, "gradient": grad})
    for name, value in results[0].items():
        assert torch.equal(results[1][name], value), name


def test_an_expanded_teacher_is_exact() -> None:
    problem = family("small_random", 3, 300, spec=EVERYTHING)
    assert problem.teacher is not None
    view = _views(problem.teacher.raw_CV)["expanded"]
    expanded = replace(problem, teacher=replace(problem.teacher, raw_CV=view, owned=False))
    assert_like_oracle(expanded, TritonRows())


def test_a_slab_that_is_not_owned_is_left_alone() -> None:
    problem = family("small_random", 3, 300, spec=EVERYTHING)
    raw_CV = problem.student.raw_CV
    before = raw_CV.clone()
    rows = TritonRows()
    student = replace(problem.student, owned=False)
    stats, state = rows.forward(student, problem.teacher, None, None, problem.spec)
    grad = rows.backward(state, {"entropy": torch.ones_like(stats["entropy"])})
    assert torch.equal(raw_CV, before)
    assert grad.data_ptr() != raw_CV.data_ptr()


def test_an_owned_slab_takes_the_gradient_unless_another_dtype_is_wanted() -> None:
    for dtype in (None, torch.float16):
        spec = replace(EVERYTHING, gradient_dtype=dtype)
        problem = family("small_random", 3, 300, spec=spec)
        rows = TritonRows()
        stats, state = rows.forward(problem.student, problem.teacher, None, None, spec)
        grad = rows.backward(state, {"entropy": torch.ones_like(stats["entropy"])})
        assert grad.dtype == (dtype or torch.float32)
        assert (grad.data_ptr() == problem.student.raw_CV.data_ptr()) == (dtype is None)


def test_no_token_gives_empty_statistics_and_an_empty_gradient() -> None:
    stats, grad = family("small_random", 0, 300, ids=2, spec=EVERYTHING).run(TritonRows())
    expected, _ = family("small_random", 0, 300, ids=2, spec=EVERYTHING).run(TorchRows())
    assert {name: value.shape for name, value in stats.items()} == {
        name: value.shape for name, value in expected.items()
    }
    assert grad.shape == (0, 300)


# --- refusals -----------------------------------------------------------------------------------


def test_float64_is_refused_and_the_message_names_the_way_out() -> None:
    problem = family("small_random", 2, 30, spec=RowSpec(torch.float64))
    with pytest.raises(TypeError, match="backend='torch'"):
        TritonRows().forward(problem.student, None, None, None, problem.spec)
    raw_CV = problem.student.raw_CV.double()
    with pytest.raises(TypeError, match=r"float64.*backend='torch'"):
        TritonRows().forward(Side(raw_CV), None, None, None, RowSpec(torch.float32))
    with pytest.raises(ValueError, match="float64"):
        resolve_backend("triton", DEVICE, torch.float64)
    assert resolve_backend("auto", DEVICE, torch.float64).name == "torch"
