"""The rows through torch.compile against torch rows in float64: input families, transforms,
combinations, exactness, memory, and what happens where nothing can be compiled.

Each combination of statistics is a program that takes seconds to compile: there are few of them
here, on many inputs. Row logic that the backends share is tested with the others.
"""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.logit_problems import DEVICE, LogitProblem, assert_like_oracle, family
from torch.profiler import ProfilerActivity, profile

import sdkernels as sd
from sdkernels.engine.stats import Tokens, TokenStats
from sdkernels.rows import RowSpec, Side, compiled_rows, resolve_backend
from sdkernels.rows.compiled_rows import CompiledRows
from sdkernels.rows.partials import RowNumbers
from sdkernels.testing import input_families

pytestmark = pytest.mark.skipif(DEVICE.type != "cpu", reason="compiled rows are for the CPU")
EVERYTHING = RowSpec(torch.float32, jsd_beta=0.3, entry_clip=0.001)
V = 9001  # whole vectors and a rest


@pytest.mark.parametrize("name", input_families())
def test_every_input_family_agrees_with_the_oracle(name: str) -> None:
    assert_like_oracle(family(name, 3, V, ids=2, spec=EVERYTHING), CompiledRows())


@pytest.mark.parametrize(("tokens", "vocab"), [(33, 2), (7, 17), (2, 4096), (4, 50257)])
def test_every_shape_agrees_with_the_oracle(tokens: int, vocab: int) -> None:
    assert_like_oracle(
        family("small_random", tokens, vocab, ids=2, spec=EVERYTHING), CompiledRows()
    )


@pytest.mark.parametrize(
    "only",
    [
        ("logp",),
        ("entropy", "lse"),
        ("kl_teacher_student",),
        ("kl_student_teacher",),
        ("jsd",),
        ("clipped_kl_teacher_student",),
    ],
)
@pytest.mark.parametrize("name", ["small_random", "one_banned", "teacher_without_support"])
def test_the_gradient_of_any_combination_agrees_with_the_oracle(
    name: str, only: tuple[str, ...]
) -> None:
    assert_like_oracle(family(name, 3, V, ids=2, spec=EVERYTHING), CompiledRows(), only)


@pytest.mark.parametrize(("scale", "temperature"), [(1.3, 0.7), (-0.5, 2.0)])
def test_transforms_agree_with_the_oracle(scale: float, temperature: float) -> None:
    """The second pair of numbers runs the program of the first."""
    problem = family("small_random", 12, V, ids=3, spec=EVERYTHING)
    bias_V = torch.randn(V, device=DEVICE)
    student = replace(
        problem.student, bias_V=bias_V, scale=scale, softcap=5.0, temperature=temperature
    )
    assert problem.teacher is not None
    teacher = replace(problem.teacher, scale=1.2, softcap=4.0, temperature=1.5)
    assert_like_oracle(replace(problem, student=student, teacher=teacher), CompiledRows())


def test_in_float64_it_is_the_oracle() -> None:
    problem = family(
        "small_random", 3, V, ids=2, dtype=torch.float64, spec=replace(EVERYTHING, topk=5)
    )
    problem = replace(problem, spec=replace(problem.spec, compute_dtype=torch.float64))
    found, grad = problem.run(CompiledRows())
    exact, exact_grad = problem.run(resolve_backend("torch", DEVICE))
    for name, value in exact.items():
        torch.testing.assert_close(found[name], value, rtol=1e-12, atol=1e-14)
    torch.testing.assert_close(grad, exact_grad, rtol=1e-12, atol=1e-14)


def test_slabs_in_bfloat16_are_read_exactly() -> None:
    problem = family("small_random", 3, V, dtype=torch.bfloat16, spec=EVERYTHING)
    assert_like_oracle(problem, CompiledRows())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_sure_tokens_gradient_survives_a_16_bit_slab(dtype: torch.dtype) -> None:
    """p - 1 of the chosen id is rounded once, not p before 1 is taken away. It comes twice."""
    raw_CV = torch.zeros(3, 65)
    raw_CV[:, 7] = torch.tensor([11.0, 12.5, 14.5])
    rows = CompiledRows()
    _, state = rows.forward(
        Side(raw_CV.to(dtype)), None, torch.tensor([[7, 7]] * 3), None, RowSpec(torch.float32)
    )
    grad_CV = rows.backward(state, {"logp": torch.tensor([[-0.25, -0.75]] * 3)})
    exact_C = raw_CV.double().softmax(-1)[:, 7] - 1
    torch.testing.assert_close(grad_CV[:, 7].double(), exact_C, rtol=1e-2, atol=0)


def test_a_small_jsd_keeps_its_digits() -> None:
    """Mixtures of nearly equal models: e^-|r| - 1 as a difference would lose all of them."""
    generator = torch.Generator().manual_seed(2)
    raw_CV = 5 * torch.randn(4, V, generator=generator)
    other_CV = raw_CV + 1e-2 * torch.randn(4, V, generator=generator)
    spec = RowSpec(torch.float32, jsd_beta=0.3)
    problem = LogitProblem(Side(raw_CV), Side(other_CV), None, spec)
    stats, grad = problem.run(CompiledRows(), only=("jsd",))
    exact, exact_grad = problem.run(resolve_backend("torch", DEVICE), torch.float64, ("jsd",))
    torch.testing.assert_close(stats["jsd"].double(), exact["jsd"], rtol=1e-3, atol=0)
    assert (grad - exact_grad).norm() < 1e-4 * exact_grad.norm()


def test_a_slice_without_mass_has_no_weight_however_low_the_others_are() -> None:
    """The other slices' logits are near -1000, and e^1000 is no number."""
    nothing = torch.tensor([[-torch.inf, 0.0, 0.0]], dtype=torch.float64)
    low = torch.tensor([-1000.0], dtype=torch.float64)
    numbers = RowNumbers(low, torch.ones_like(low), torch.ones_like(low).exp())
    row = compiled_rows._row_numbers(nothing, numbers, torch.float32).student
    assert row.inverse_z_C.tolist() == [0.0]
    assert row.log_z_C.tolist() == [-999.0]  # of the whole row: it has mass elsewhere


@pytest.mark.parametrize("topk_of", ["student", "teacher"])
def test_topk_lists_agree_with_the_oracle(topk_of: str) -> None:
    spec = RowSpec(torch.float32, topk=70, topk_of=topk_of)
    problem = family("small_random", 3, 700, ids=2, spec=spec)
    student = replace(problem.student, bias_V=torch.randn(700, device=DEVICE), scale=-1.3)
    assert_like_oracle(replace(problem, student=student), CompiledRows())


def test_a_student_alone_agrees_with_the_oracle() -> None:
    assert_like_oracle(replace(family("one_banned", 5, V), teacher=None), CompiledRows())


def test_repeated_ids_get_the_sum_of_their_coefficients() -> None:
    problem = family("small_random", 3, V, ids=40, spec=EVERYTHING)
    assert problem.ids_CK is not None
    ids_CK = problem.ids_CK.clone()
    ids_CK[:, 35] = ids_CK[:, 1] = ids_CK[:, 0]
    assert_like_oracle(replace(problem, ids_CK=ids_CK), CompiledRows())


def test_teacher_equal_to_student_is_exactly_zero() -> None:
    problem = family("teacher_equals_student", 4, V, ids=2, spec=EVERYTHING)
    names = ("kl_teacher_student", "kl_student_teacher", "jsd", "clipped_kl_teacher_student")
    stats, grad = problem.run(CompiledRows(), only=names)
    for name in names:
        assert (stats[name] == 0).all(), name
    assert (grad == 0).all()


def test_rows_without_mass_are_defined_as_by_the_oracle() -> None:
    problem = family("small_random", 4, V, ids=2, spec=EVERYTHING)
    assert problem.teacher is not None
    student_CV, teacher_CV = problem.student.raw_CV.clone(), problem.teacher.raw_CV.clone()
    student_CV[1:3] = -torch.inf
    teacher_CV[2:] = -torch.inf
    sides = {"student": Side(student_CV), "teacher": Side(teacher_CV)}
    assert_like_oracle(replace(problem, **sides), CompiledRows())


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_an_infinite_divergence_with_weight_zero_sends_nothing(weight: float) -> None:
    """Row 1 has an entry that only the student allows."""
    problem = family("small_random", 3, V, ids=2, spec=EVERYTHING)
    assert problem.teacher is not None
    teacher_CV = problem.teacher.raw_CV.clone()
    teacher_CV[1, 7] = -torch.inf
    rows = CompiledRows()
    sides = Side(problem.student.raw_CV, owned=False), Side(teacher_CV, owned=False)
    stats, state = rows.forward(*sides, None, None, problem.spec)
    assert stats["kl_student_teacher"].isinf().tolist() == [False, True, False]
    coefs = torch.tensor([1.0, weight, 1.0], device=DEVICE)
    grad = rows.backward(state, {"kl_student_teacher": coefs})
    assert grad[[0, 2]].isfinite().all()
    assert grad[1].eq(0.0).all() == (weight == 0.0)


def test_a_slab_that_is_not_ours_stays_what_it_was() -> None:
    problem = family("small_random", 3, V, ids=2, spec=EVERYTHING)
    assert problem.teacher is not None
    before = problem.student.raw_CV.clone(), problem.teacher.raw_CV.clone()
    lent = replace(
        problem,
        student=replace(problem.student, owned=False),
        teacher=replace(problem.teacher, owned=False),
    )
    _, grad = lent.run(CompiledRows())
    assert torch.equal(problem.student.raw_CV, before[0])
    assert torch.equal(problem.teacher.raw_CV, before[1])
    _, over = problem.run(CompiledRows())
    assert torch.equal(grad, over)


# --- in the engine --------------------------------------------------------------------------------


def _loss(
    backend: str,
    tokens: int,
    *,
    dtype: torch.dtype = torch.float32,
    softcap: float | None = None,
    **settings: Any,
) -> tuple[torch.Tensor, ...]:
    """A loss with every divergence that is asked for, its value and gradients."""
    generator = torch.Generator().manual_seed(5)

    def leaf(*shape: int) -> torch.Tensor:
        value = torch.randn(shape, generator=generator) / shape[-1] ** 0.25
        return value.to(dtype).requires_grad_()

    def loss_fn(s: TokenStats, tok: Tokens) -> torch.Tensor:
        named = [s[name] for name in ("jsd", "clipped_kl_teacher_student") if name in s]
        return tok.weight * s.kl_teacher_student + 0.1 * s.entropy + sum(named)

    hidden_TD, weight_VD, teacher_TD = leaf(tokens, 16), leaf(V, 16), leaf(tokens, 16)
    head = sd.LMHead(weight_VD, softcap=softcap)
    loss, stats = sd.token_loss(
        hidden_TD,
        head,
        loss_fn,
        teacher=sd.HiddenTeacher(teacher_TD.detach(), head),
        tokens={"weight": torch.linspace(-1, 1, tokens)},
        backend=backend,
        **settings,
    )
    loss.backward()
    assert hidden_TD.grad is not None
    assert weight_VD.grad is not None
    return loss.detach(), stats.kl_teacher_student, hidden_TD.grad, weight_VD.grad


@pytest.mark.parametrize("tokens", [40, 23])
def test_the_engine_gives_the_same_in_chunks(tokens: int) -> None:
    expected = _loss("torch", tokens, temperature=0.8)
    found = _loss("compiled", tokens, temperature=0.8, chunk_bytes=12 * 2 * 4 * V)
    for left, right in zip(found, expected, strict=True):
        torch.testing.assert_close(left, right, rtol=2e-5, atol=2e-6)


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all statistics": {"jsd_beta": 0.5, "entry_clip": 0.01},
    "transforms": {"temperature": 0.7, "softcap": 30.0},
    "16 bits": {"slab_dtype": "model", "dtype": torch.bfloat16, "jsd_beta": 0.5},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_no_tensor_of_the_size_of_a_slab_is_made(name: str) -> None:
    """Every allocation is seen, those inside of compiled functions too."""
    tokens, settings = 64, SETTINGS[name]
    _loss("compiled", tokens, **settings)  # compiling allocates as it likes
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as trace:
        _loss("compiled", tokens, **settings)
    sizes = [event.nbytes() for event in _allocations(trace)]
    slabs = 2 * tokens * V * settings.get("dtype", torch.float32).itemsize  # both models' logits
    assert [size for size in sizes if size >= tokens * V * 4] == [slabs]


def _allocations(trace: profile) -> list:  # type: ignore[type-arg]
    """Memory events of a trace that take memory."""
    return [
        event
        for event in trace.profiler.kineto_results.events()  # type: ignore[union-attr]
        if event.name() == "[memory]" and event.nbytes() > 0
    ]


def test_more_programs_than_torch_allows_are_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch would stop after `recompile_limit` of them; where ours is reached it says so."""
    problem = replace(family("small_random", 2, 40, ids=1), teacher=None)

    def scaled(scale: float, softcap: float | None = None) -> LogitProblem:
        student = replace(problem.student, scale=scale, softcap=softcap)
        return replace(problem, student=student)

    with torch._dynamo.config.patch(recompile_limit=1):
        for scale in (1.0, 2.0):
            assert_like_oracle(scaled(scale), CompiledRows(), ("lse",))
    monkeypatch.setattr(compiled_rows, "MOST_PROGRAMS", 1)
    with pytest.raises(
        RuntimeError, match=r"1 combinations of statistics, .* are compiled already"
    ):
        scaled(1.0, softcap=9.0).run(CompiledRows())


def test_with_compiling_switched_off_it_refuses() -> None:
    """The formulas as they stand would make tensors of a slab's size."""
    problem = family("small_random", 2, 43)
    refused = pytest.raises(RuntimeError, match=r"torch\.compile is switched off here")
    with torch.compiler.set_stance("force_eager"), refused:
        problem.run(CompiledRows())


def test_it_is_for_the_cpu() -> None:
    with pytest.raises(ValueError, match="backend='compiled' cannot run: it is for CPU tensors"):
        resolve_backend("compiled", torch.device("meta"))


def test_without_a_compiler_the_error_says_what_to_do(tmp_path: Path) -> None:
    program = (
        "import torch, sdkernels as sd\n"
        "sd.token_stats(torch.randn(2, 4), torch.randn(5, 4), backend='compiled')"
    )
    missing = {"CXX": str(tmp_path / "g++"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path)}
    found = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | missing,
        capture_output=True,
        text=True,
        check=False,
    )
    assert found.returncode == 1
    last = found.stderr.strip().splitlines()[-1]
    assert "backend='compiled' cannot run: torch.compile failed on 'maximum'" in last
    assert "set CXX or install g++" in last
