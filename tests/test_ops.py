"""The named shortcuts: same numbers as the engine, per token or reduced."""

import re
from typing import Any

import pytest
import torch
from helpers.oracle import Problem, make_problem
from torch import Tensor

import sdkernels as sd
from sdkernels.ops import DIVERGENCES
from sdkernels.testing import assert_exact

MASK = torch.rand(5, 4, generator=torch.Generator().manual_seed(9)) > 0.4


def random_like(value: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    return torch.randn(value.shape, generator=generator, dtype=value.dtype)


def assert_same_grads(problem: Problem, got: Tensor, expected: Tensor) -> None:
    """Gradients under one random upstream gradient per entry."""
    upstream, leaves = random_like(got.detach()), problem.leaves()
    assert_exact(got.detach(), expected.detach())
    found = torch.autograd.grad(got, list(leaves.values()), upstream)
    wanted = torch.autograd.grad(expected, list(leaves.values()), upstream)
    for name, a, b in zip(leaves, found, wanted, strict=True):
        assert_exact(a, b, name=name)


# --- log-probs ------------------------------------------------------------------------------------


@pytest.mark.parametrize("frozen_head", [False, True])
@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("ids", [None, 1, 3])
@pytest.mark.parametrize("with_entropy", [False, True])
def test_linear_logprob(
    with_entropy: bool, ids: int | None, mask: Tensor | None, frozen_head: bool
) -> None:
    problem = make_problem(teacher=None, ids=ids, temperature=0.8, scale=0.7, topk=None)
    problem.weight.requires_grad_(not frozen_head)
    problem.bias.requires_grad_(not frozen_head)
    result = sd.linear_logprob(
        problem.hidden,
        problem.head(),
        problem.targets,
        with_entropy=with_entropy,
        mask=mask,
        temperature=0.8,
        chunk_bytes=6000,
    )
    outputs = result if with_entropy else (result,)
    reference = problem.reference_stats()
    for output, expected in zip(outputs, (reference.logp, reference.entropy), strict=False):
        kept = torch.ones(5, 4) if mask is None else mask
        kept = kept.reshape(5, 4, *[1] * (expected.dim() - 2))
        assert output.shape == expected.shape
        if with_entropy:
            # Both outputs belong to one graph.
            got = torch.autograd.grad(
                output, problem.hidden, random_like(output), retain_graph=True
            )
            wanted = torch.autograd.grad(
                expected * kept, problem.hidden, random_like(output), retain_graph=True
            )
            assert_exact(got[0], wanted[0])
        else:
            assert_same_grads(problem, output, expected * kept)


# --- divergences ----------------------------------------------------------------------------------


def divergence_of(problem: Problem, name: str, **keywords: Any) -> Tensor:
    return sd.linear_divergence(
        problem.hidden, problem.head(), problem.teacher(), name, beta=0.3, **keywords
    )


@pytest.mark.parametrize("teacher", ["hidden", "logits", "topk"])
@pytest.mark.parametrize("name", DIVERGENCES)
@pytest.mark.parametrize("frozen_head", [False, True])
@pytest.mark.parametrize("weighted", [False, True])
def test_linear_divergence(name: str, teacher: str, frozen_head: bool, weighted: bool) -> None:
    problem = make_problem(teacher=teacher, topk=None, mask=MASK)
    problem.weight.requires_grad_(not frozen_head)
    problem.bias.requires_grad_(not frozen_head)
    weights = random_like(problem.tokens["q"]) if weighted else None
    plain = vars(problem.reference_stats())[name] * MASK
    expected = plain if weights is None else weights * plain
    keywords = {"weights": weights, "mask": MASK}
    assert_same_grads(problem, divergence_of(problem, name, **keywords), expected)
    expected = vars(problem.reference_stats())[name] * MASK * (1 if weights is None else weights)
    total = divergence_of(problem, name, reduction="sum", **keywords)
    assert_same_grads(problem, total, expected.sum())
    expected = vars(problem.reference_stats())[name] * MASK * (1 if weights is None else weights)
    mean = divergence_of(problem, name, reduction="mean", **keywords)
    assert_same_grads(problem, mean, expected.sum() / MASK.sum())


def test_the_direction_of_a_divergence_is_its_argument_order() -> None:
    """By hand on two ids, so that no shared formula can be wrong in the same way."""
    hidden = torch.tensor([[1.0]], dtype=torch.float64)
    weight = torch.tensor([[0.25], [0.75]], dtype=torch.float64).log()
    teacher = sd.LogitsTeacher(torch.tensor([[0.5, 0.5]], dtype=torch.float64).log())
    values = {
        name: sd.linear_divergence(hidden, weight, teacher, name).item() for name in DIVERGENCES
    }
    log = [float(torch.tensor(x, dtype=torch.float64).log()) for x in (2.0, 2 / 3)]
    assert values["kl_teacher_student"] == pytest.approx(0.5 * log[0] + 0.5 * log[1], rel=1e-12)
    assert values["kl_student_teacher"] == pytest.approx(-0.25 * log[0] - 0.75 * log[1], rel=1e-12)
    assert 0 < values["jsd"] < min(values["kl_teacher_student"], values["kl_student_teacher"])


def test_beta_is_the_share_of_the_teacher() -> None:
    """JSD over beta tends to KL(T,S) as beta goes to 0, over 1 - beta to KL(S,T) at 1."""
    problem = make_problem(topk=None)
    reference = problem.reference_stats()
    for beta, factor, limit in (
        (1e-6, 1e-6, reference.kl_teacher_student),
        (1 - 1e-6, 1e-6, reference.kl_student_teacher),
    ):
        jsd = sd.linear_divergence(
            problem.hidden, problem.head(), problem.teacher(), "jsd", beta=beta
        )
        torch.testing.assert_close(jsd / factor, limit, rtol=1e-4, atol=0)


@pytest.mark.parametrize("reduction", ["none", "sum", "mean"])
@pytest.mark.parametrize("lead", [(0,), (5, 4)])
def test_no_token(lead: tuple[int, ...], reduction: str) -> None:
    problem = make_problem(lead, topk=None)
    mask = torch.zeros(lead, dtype=torch.bool)
    value = divergence_of(problem, "kl_teacher_student", reduction=reduction, mask=mask)
    assert value.shape == (lead if reduction == "none" else ())
    assert not value.any()
    value.sum().backward()
    assert not any(leaf.grad.any() for leaf in problem.leaves().values())


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"divergence": "forward"},
            ValueError,
            "divergence='forward': accepted are 'kl_teacher_stud",
        ),
        (
            {"reduction": "batchmean"},
            ValueError,
            "reduction='batchmean': accepted are 'none', 'sum'",
        ),
        (
            {"divergence": "jsd", "beta": 1.0},
            ValueError,
            "beta=1.0: expected a number strictly b",
        ),
        (
            {"teacher": None},
            TypeError,
            "teacher: expected a HiddenTeacher, LogitsTeacher or TopKTeac",
        ),
        (
            {"weights": torch.ones(3)},
            ValueError,
            "weights: expected a tensor of shape [5, 4], got [3",
        ),
        ({"weights": 2.0}, ValueError, "weights: expected a tensor of shape [5, 4], got float"),
    ],
)
@pytest.mark.parametrize("reduction", ["none", "sum"])
def test_message(
    arguments: dict[str, Any], error: type[Exception], message: str, reduction: str
) -> None:
    problem = make_problem(topk=None)
    arguments = {"teacher": problem.teacher(), "reduction": reduction, **arguments}
    with pytest.raises(error, match=re.escape(message)):
        sd.linear_divergence(problem.hidden, problem.head(), **arguments)


def test_sum_forms_its_gradient_in_the_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []
    forward = sd.engine.problem.Problem.forward_chunk
    monkeypatch.setattr(
        "sdkernels.engine.problem.Problem.forward_chunk",
        lambda *arguments: calls.append(1) or forward(*arguments),
    )
    problem = make_problem(topk=None)
    divergence_of(problem, "jsd", reduction="sum").backward()
    assert len(calls) == 1
    divergence_of(problem, "jsd").sum().backward()
    assert len(calls) == 3
