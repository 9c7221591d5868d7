"""`token_stats`: per-token statistics with gradients, for upstream gradients of every kind."""

from typing import Any

import pytest
import torch
from helpers.oracle import (
    DIFFERENTIABLE,
    Problem,
    assert_stats_exact,
    make_problem,
)
from torch import Tensor
from torch.utils.checkpoint import checkpoint

import sdkernels as sd
from sdkernels.testing import assert_exact

MASK = torch.rand(5, 4, generator=torch.Generator().manual_seed(9)) > 0.4
PROBLEMS: dict[str, dict[str, Any]] = {
    "hidden_teacher": {},
    "logits_teacher": {"teacher": "logits", "ids": 3},
    "topk_teacher": {"teacher": "topk"},
    "topk_teacher_without_tail": {"teacher": "topk", "tail": False},
    "no_teacher": {"teacher": None},
    "all_transforms": {
        "scale": 0.6,
        "softcap": 2.0,
        "temperature": 1.3,
        "teacher_temperature": 0.8,
        "valid_vocab": 17,
    },
    "masked": {"mask": MASK},
    "one_dimension": {"lead": ()},
    "three_dimensions": {"lead": (2, 3, 4), "D": 3, "teacher_D": 7},
}


def random_like(value: Tensor, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(value.shape, generator=generator, dtype=value.dtype)


def assert_grads_exact(
    problem: Problem, upstream: dict[str, Tensor], *, rtol: float = 1e-12, **more: Any
) -> None:
    """Gradients for one upstream tensor per statistic, the others unused, against the oracle."""
    leaves = list(problem.leaves().values())
    stats, reference = problem.engine_stats(**more), vars(problem.reference_stats())
    got = torch.autograd.grad([stats[name] for name in upstream], leaves, list(upstream.values()))
    # A masked token reports 0 whatever the weights are, so no gradient comes from it.
    mask = torch.ones(problem.hidden.shape[:-1], dtype=torch.bool)
    mask = mask if problem.mask is None else problem.mask
    kept = [
        value * mask.reshape(mask.shape + (1,) * (value.dim() - mask.dim()))
        for value in upstream.values()
    ]
    expected = torch.autograd.grad([reference[name] for name in upstream], leaves, kept)
    for name, a, b in zip(problem.leaves(), got, expected, strict=True):
        assert_exact(a, b, rtol=rtol, name=f"{name} from {', '.join(upstream)}")


def upstream_of(problem: Problem, names: tuple[str, ...] = DIFFERENTIABLE) -> dict[str, Tensor]:
    reference = vars(problem.reference_stats())
    return {
        name: random_like(reference[name], seed)
        for seed, name in enumerate(names)
        if name in reference
    }


@pytest.mark.parametrize("name", PROBLEMS)
def test_exact_in_float64(name: str) -> None:
    problem = make_problem(**PROBLEMS[name])
    assert_stats_exact(problem, problem.engine_stats())
    assert_grads_exact(problem, upstream_of(problem))


@pytest.mark.parametrize("statistic", DIFFERENTIABLE)
@pytest.mark.parametrize("name", ["all_transforms", "topk_teacher", "masked"])
def test_each_statistic_alone(name: str, statistic: str) -> None:
    """All other outputs get None from upstream."""
    problem = make_problem(**PROBLEMS[name])
    assert_grads_exact(problem, upstream_of(problem, (statistic,)))


@pytest.mark.parametrize("kind", ["transposed", "expanded", "strided"])
def test_upstream_gradients_that_are_not_contiguous(kind: str) -> None:
    problem = make_problem(ids=3)
    upstream = upstream_of(problem)
    for name, value in upstream.items():
        if kind == "transposed":
            upstream[name] = value.transpose(0, 1).contiguous().transpose(0, 1)
        elif kind == "expanded":
            upstream[name] = value.flatten()[0].expand(value.shape)
        else:
            upstream[name] = torch.stack([value, value + 1], dim=-1)[..., 0]
        assert not upstream[name].is_contiguous()
    assert_grads_exact(problem, upstream)


def test_several_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sdkernels.rows.blocks.BLOCK_ELEMENTS", 50)
    problem = make_problem(mask=MASK)
    assert_grads_exact(problem, upstream_of(problem), chunk_bytes=8000)
    assert_stats_exact(problem, problem.engine_stats(chunk_bytes=8000))


@pytest.mark.parametrize("trainable", [("hidden",), ("weight",), ("bias",), ("hidden", "bias")])
def test_what_is_frozen_gets_no_gradient(trainable: tuple[str, ...]) -> None:
    problem = make_problem()
    for name in ("hidden", "weight", "bias"):
        getattr(problem, name).requires_grad_(name in trainable)
    assert_grads_exact(problem, upstream_of(problem))


def test_which_fields_require_grad() -> None:
    stats = make_problem().engine_stats()
    requiring = {name for name, value in stats.items() if value.requires_grad}
    assert requiring == set(DIFFERENTIABLE)
    frozen = make_problem()
    for leaf in frozen.leaves().values():
        leaf.requires_grad_(False)
    assert not any(value.requires_grad for _, value in frozen.engine_stats().items())
    with torch.no_grad():
        assert not any(value.requires_grad for _, value in make_problem().engine_stats().items())


def test_infinite_statistics_are_reported_not_refused() -> None:
    hidden, weight = torch.randn(3, 4), torch.randn(7, 4)
    bias = torch.zeros(7).index_fill(0, torch.tensor([2]), -torch.inf)
    teacher = sd.HiddenTeacher(torch.randn(3, 4), weight)
    stats = sd.token_stats(hidden, sd.LMHead(weight, bias), teacher=teacher)
    assert stats.kl_teacher_student.isposinf().all()
    assert stats.kl_student_teacher.isfinite().all()


@pytest.mark.parametrize("lead", [(0,), (2, 0)])
@pytest.mark.parametrize("teacher", ["hidden", "logits", "topk", None])
def test_no_token(lead: tuple[int, ...], teacher: str | None) -> None:
    problem = make_problem(lead, teacher=teacher)
    stats = problem.engine_stats()
    assert all(value.shape[: len(lead)] == lead for _, value in stats.items())
    stats.entropy.sum().backward()
    assert not any(leaf.grad.any() for leaf in problem.leaves().values())


# --- autograd -------------------------------------------------------------------------------------


def test_second_backward_with_retain_graph() -> None:
    problem = make_problem()
    leaves = list(problem.leaves().values())
    stats = problem.engine_stats()
    one, two = random_like(stats.entropy, 1), random_like(stats.entropy, 2)
    first = torch.autograd.grad(stats.entropy, leaves, one, retain_graph=True)
    kept = [grad.clone() for grad in first]
    second = torch.autograd.grad(stats.entropy, leaves, two, retain_graph=True)
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))
    again = torch.autograd.grad(problem.engine_stats().entropy, leaves, two)
    assert all(torch.equal(a, b) for a, b in zip(second, again, strict=True))


def test_second_backward_without_retain_graph_raises() -> None:
    stats = make_problem().engine_stats()
    stats.entropy.sum().backward()
    with pytest.raises(RuntimeError, match="second time"):
        stats.lse.sum().backward()


@pytest.mark.parametrize("power", [1, 2])
@pytest.mark.parametrize("frozen_head", [False, True])
def test_double_backward_raises(frozen_head: bool, power: int) -> None:
    problem = make_problem(bias=False)
    problem.weight.requires_grad_(not frozen_head)
    logp = sd.linear_logprob(problem.hidden, problem.weight, problem.targets)
    (grad,) = torch.autograd.grad((logp**power).sum(), problem.hidden, create_graph=True)
    with pytest.raises(RuntimeError, match="double backward"):
        (problem.hidden.sum() + grad.square().sum()).backward()


@pytest.mark.parametrize("frozen_head", [False, True])
def test_constants_may_be_made_in_inference_mode(frozen_head: bool) -> None:
    """A reference model's hidden states, say."""
    plain = make_problem(bias=False)
    plain.weight.requires_grad_(not frozen_head)
    with torch.inference_mode():
        frozen = {
            name: value.detach().clone()
            for name, value in vars(plain).items()
            if isinstance(value, Tensor) and not value.requires_grad
        }
    assert "teacher_hidden" in frozen
    made = Problem(**{**vars(plain), **frozen})
    found = []
    for problem in (plain, made):
        stats = problem.engine_stats()
        total = (stats.kl_teacher_student * stats.logp).sum()
        found.append([total, *torch.autograd.grad(total, problem.hidden)])
    for expected, value in zip(*found, strict=True):
        assert torch.equal(expected, value)


@pytest.mark.parametrize("use_reentrant", [True, False])
def test_checkpointing(use_reentrant: bool) -> None:
    problem = make_problem()
    mixer = torch.randn(6, 6, dtype=torch.float64, requires_grad=True)

    def run(hidden: Tensor) -> Tensor:
        moved = Problem(**{**vars(problem), "hidden": torch.tanh(hidden @ mixer)})
        stats = moved.engine_stats()
        return (stats.entropy * stats.kl_teacher_student).sum()

    leaves = [problem.hidden, problem.weight, problem.bias, mixer]
    run(problem.hidden).backward()
    expected = [leaf.grad.clone() for leaf in leaves]
    for leaf in leaves:
        leaf.grad = None
    checkpoint(run, problem.hidden, use_reentrant=use_reentrant).backward()
    assert all(torch.equal(leaf.grad, grad) for leaf, grad in zip(leaves, expected, strict=True))


@pytest.mark.parametrize(
    "name", ["hidden", "weight", "bias", "teacher_hidden", "teacher_weight", "teacher_bias"]
)
def test_inputs_changed_before_backward_are_noticed(name: str) -> None:
    """The backward pass projects again; an EMA teacher that moved in between would be wrong."""
    problem = make_problem()
    stats = problem.engine_stats()
    with torch.no_grad():
        getattr(problem, name).add_(1.0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stats.kl_teacher_student.sum().backward()


def test_teacher_logits_and_targets_changed_before_backward_are_noticed() -> None:
    for name in ("teacher_logits", "targets"):
        problem = make_problem(teacher="logits")
        stats = problem.engine_stats()
        getattr(problem, name).zero_()
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            (stats.kl_teacher_student + stats.logp).sum().backward()


def test_a_changed_list_of_a_teacher_is_noticed() -> None:
    hidden = torch.randn(2, 4, requires_grad=True)
    teacher = sd.TopKTeacher(torch.tensor([[1, 2], [3, 4]]), torch.full((2, 2), -1.0))
    stats = sd.token_stats(hidden, torch.randn(9, 4), teacher=teacher)
    teacher.ids.fill_(0)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        stats.kl_teacher_student.sum().backward()


def test_gradcheck() -> None:
    """The analytic gradients against finite differences, independent of any oracle."""
    problem = make_problem((2,), D=3, V=5, topk=2, softcap=3.0, temperature=1.2)

    def run(hidden: Tensor, weight: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        moved = Problem(**{**vars(problem), "hidden": hidden, "weight": weight, "bias": bias})
        stats = moved.engine_stats()
        return tuple(stats[name] for name in DIFFERENTIABLE)

    assert torch.autograd.gradcheck(run, (problem.hidden, problem.weight, problem.bias))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_gradients_come_in_the_dtypes_of_the_inputs(dtype: torch.dtype) -> None:
    problem = make_problem(dtype=dtype)
    stats = problem.engine_stats()
    assert stats.entropy.dtype == torch.float32
    grads = torch.autograd.grad(stats.entropy.sum(), list(problem.leaves().values()))
    assert all(grad.dtype == dtype and grad.isfinite().all() for grad in grads)


# --- a frozen head recomputes nothing -------------------------------------------------------------


@pytest.mark.parametrize("mask", [None, MASK])
def test_frozen_head_with_one_output_projects_once(
    mask: Tensor | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    problem = make_problem(mask=mask, bias=False, topk=None)
    problem.weight.requires_grad_(False)
    calls = []
    forward = sd.engine.problem.Problem.forward_chunk
    monkeypatch.setattr(
        "sdkernels.engine.problem.Problem.forward_chunk",
        lambda *arguments: calls.append(1) or forward(*arguments),
    )
    logp = sd.linear_logprob(problem.hidden, problem.weight, problem.targets, mask=mask)
    upstream = random_like(logp, 3)
    (got,) = torch.autograd.grad(logp, problem.hidden, upstream, retain_graph=True)
    assert len(calls) == 1
    (again,) = torch.autograd.grad(logp, problem.hidden, 2 * upstream)
    assert torch.equal(again, 2 * got)
    reference = problem.reference_stats().logp
    kept = upstream if mask is None else upstream * mask
    assert_exact(got, torch.autograd.grad(reference, problem.hidden, kept)[0])
