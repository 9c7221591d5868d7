"""Divergences over a few buckets a token."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

import sdkernels as sd
from sdkernels.engine.topk import buckets, derived_statistics, jsd, kl, log1mexp
from sdkernels.testing import assert_exact

INF = torch.inf


def logs(*probabilities: float, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.tensor([probabilities], dtype=dtype).log()


@pytest.mark.parametrize("x", [-1e-12, -1e-6, -1e-3, -0.5, -0.7, -3.0, -40.0, -700.0])
def test_log1mexp(x: float) -> None:
    value = torch.tensor([x], dtype=torch.float64, requires_grad=True)
    # log(1 - e^x) = log(-expm1(x)), and its derivative -e^x / (1 - e^x) = -1 / expm1(-x)
    exact = math.log(-math.expm1(x)) if x > -30 else -math.exp(x)
    result = log1mexp(value)
    assert result.item() == pytest.approx(exact, rel=1e-13)
    (grad,) = torch.autograd.grad(result, value)
    assert grad.item() == pytest.approx(-1.0 / math.expm1(-x), rel=1e-12)


def test_log1mexp_without_anything_left() -> None:
    value = torch.tensor([0.0, 1e-7, -INF], requires_grad=True)
    result = log1mexp(value)
    assert result.tolist() == [-INF, -INF, 0.0]
    (grad,) = torch.autograd.grad(result[2] + result[:2].exp().sum(), value)
    assert torch.equal(grad, torch.zeros(3))


def test_buckets() -> None:
    logp = logs(0.5, 0.2)
    torch.testing.assert_close(buckets(logp, tail=True).exp(), logs(0.5, 0.2, 0.3).exp())
    torch.testing.assert_close(buckets(logp, tail=False).exp(), logs(5 / 7, 2 / 7).exp())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_tail_below_resolution_is_the_smallest_one_resolved(dtype: torch.dtype) -> None:
    """1 - sum of a peaked row is 0, a little above or a little below: never an infinite KL."""
    eps = torch.finfo(dtype).eps
    for mass in (1.0 - eps, 1.0, 1.0 + 4 * eps):
        student = logs(mass, dtype=dtype).requires_grad_()
        tail = buckets(student, tail=True)[0, -1]
        assert tail.item() == pytest.approx(math.log(eps), abs=0.8)
        value = kl(buckets(logs(0.9, dtype=dtype), tail=True), buckets(student, tail=True))
        (grad,) = torch.autograd.grad(value, student)
        assert value.isfinite().all()
        assert grad.isfinite().all()


def test_divergences_by_hand() -> None:
    t, s = logs(0.5, 0.2, 0.3), logs(0.25, 0.25, 0.5)
    expected = 0.5 * math.log(2) + 0.2 * math.log(0.8) + 0.3 * math.log(0.6)
    assert kl(t, s).item() == pytest.approx(expected, rel=1e-14)
    m = 0.3 * t.exp() + 0.7 * s.exp()
    by_hand = 0.3 * (t.exp() * (t - m.log())).sum() + 0.7 * (s.exp() * (s - m.log())).sum()
    assert jsd(s, t, 0.3).item() == pytest.approx(by_hand.item(), rel=1e-13)


@pytest.mark.parametrize("beta", [0.3, 0.5, 0.9])
def test_gradient_of_the_jsd_where_some_entries_are_equal(beta: float) -> None:
    """(1 - beta) S log(S/M) entry by entry: exactly 0 at a tie, where log(T/S) changes sign."""
    t, s = logs(0.5, 0.2, 0.3), logs(0.5, 0.4, 0.1).requires_grad_()
    (grad,) = torch.autograd.grad(jsd(s, t, beta).sum(), s)
    m = beta * t.exp() + (1 - beta) * s.detach().exp()
    expected = (1 - beta) * s.detach().exp() * (s.detach() - m.log())
    torch.testing.assert_close(grad, expected, rtol=1e-13, atol=1e-15)
    assert grad[0, 0] == 0.0


@pytest.mark.parametrize("beta", [1e-8, 1e-6, 1e-3, 0.999, 1 - 1e-6, 1 - 1e-8])
def test_jsd_in_float32_keeps_its_digits_whatever_the_share(beta: float) -> None:
    generator = torch.Generator().manual_seed(0)
    t, s = (3 * torch.randn(20, 8, generator=generator, dtype=torch.float64) for _ in range(2))
    t, s = t.log_softmax(-1), s.log_softmax(-1)
    m = torch.logaddexp(t + math.log(beta), s + math.log1p(-beta))
    exact = beta * (t.exp() * (t - m)).sum(-1) + (1 - beta) * (s.exp() * (s - m)).sum(-1)
    leaf = s.float().requires_grad_()
    value = jsd(leaf, t.float(), beta)
    (grad,) = torch.autograd.grad(value.sum(), leaf)
    slope = (1 - beta) * s.exp() * (s - m)
    assert (value.detach() - exact).norm() < 5e-6 * exact.norm()
    assert (grad - slope).norm() < 5e-6 * slope.norm()


def test_jsd_of_buckets_copies_nothing_to_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tensor made of a list of numbers is one copy a chunk, which a graph cannot capture."""

    def refused(self: Tensor, *given: object, **more: object) -> Tensor:
        raise AssertionError(f"a tensor of {given}")

    monkeypatch.setattr(Tensor, "new_tensor", refused)
    monkeypatch.setattr(torch, "tensor", refused)
    s, t = torch.full((2, 3), 1 / 3).log(), torch.full((2, 3), 1 / 3).log()
    assert not jsd(s, t, 0.3).any()


@pytest.mark.parametrize("tail", [True, False])
def test_without_mass_somewhere(tail: bool) -> None:
    """0 log 0 = 0 in value and gradient; what only one side lacks is infinite or finite as due."""
    some, none = logs(0.4, 0.3, 0.2), logs(0.4, 0.0, 0.5)
    for student, teacher in ((some, none), (none, none), (none, some)):
        leaf = student.clone().requires_grad_()
        derived = derived_statistics(leaf, teacher, tail=tail, jsd_beta=0.5, entry_clip=0.1)
        s_lacks = bool(((student == -INF) & (teacher > -INF)).any())
        t_lacks = bool(((teacher == -INF) & (student > -INF)).any())
        assert derived["kl_teacher_student"].isposinf().all() == s_lacks
        assert derived["kl_student_teacher"].isposinf().all() == t_lacks
        assert derived["jsd"].isfinite().all()
        assert derived["clipped_kl_teacher_student"].isfinite().all()
        if not s_lacks:
            for name in ("kl_teacher_student", "jsd", "clipped_kl_teacher_student"):
                (grad,) = torch.autograd.grad(derived[name].sum(), leaf, retain_graph=True)
                assert not grad.isnan().any(), name


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tail", [True, False])
def test_equal_lists_have_no_divergence(tail: bool, dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    full = 3 * torch.randn(200, 50, generator=generator, dtype=dtype)
    logp = full.log_softmax(-1).topk(7, dim=-1).values
    derived = derived_statistics(logp, logp.clone(), tail=tail, jsd_beta=0.3, entry_clip=0.1)
    for name, value in derived.items():
        assert torch.equal(value, torch.zeros_like(value)), name


def test_a_confident_student_under_a_softer_teacher_has_a_finite_loss() -> None:
    """Through the engine in float32: the student's mass on the listed ids rounds to 1."""
    hidden = torch.tensor([[40.0, 0.0]], requires_grad=True)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, -1.0], [-1.0, 0.0]])
    teacher = sd.TopKTeacher(torch.tensor([[0, 1]]), torch.tensor([[0.8, 0.1]]).log())
    loss = sd.linear_divergence(hidden, weight, teacher, reduction="sum")
    assert 0 < loss.item() < 10
    loss.backward()
    assert hidden.grad.isfinite().all()


def test_one_support_for_both_models() -> None:
    """topk= in a loss function gives the same divergences as a list of the same teacher."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    hidden, weight, logits = normal(6, 4).requires_grad_(), normal(9, 4), normal(6, 9)
    served = logits.log_softmax(-1).topk(3, dim=-1)
    listed, _ = sd.token_loss(
        hidden,
        weight,
        lambda s, tok: s.kl_teacher_student,
        teacher=sd.TopKTeacher(served.indices, served.values),
    )
    by_hand, _ = sd.token_loss(
        hidden,
        weight,
        lambda s, tok: kl(buckets(s.teacher_topk_logp, tail=True), buckets(s.topk_logp, tail=True)),
        teacher=sd.LogitsTeacher(logits),
        topk=3,
        topk_of="teacher",
    )
    assert_exact(by_hand.detach(), listed.detach())
    grads = [torch.autograd.grad(loss, hidden)[0] for loss in (by_hand, listed)]
    assert_exact(*grads)


@pytest.mark.parametrize("backend", ["torch", "compiled", "triton"])
def test_lists_of_one_call_are_tensors_of_their_own(backend: str) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden, other = torch.randn(2, 5, 4, generator=generator)
    weight = torch.randn(11, 4, generator=generator)

    def loss(s: sd.TokenStats, tok: Any) -> Tensor:
        lists = (s.logp, s.topk_logp, s.teacher_logp, s.teacher_topk_logp, s.topk_ids)
        gaps.extend(item.shape for item in lists if not item.is_contiguous())
        memory.append({item.untyped_storage().data_ptr() for item in lists})
        return s.topk_logp.view(-1).view(-1, 3).sum(-1) + s.logp.view(-1)

    gaps: list[torch.Size] = []
    memory: list[set[int]] = []
    sd.token_loss(
        hidden,
        weight,
        loss,
        targets=torch.arange(5),
        topk=3,
        teacher=sd.HiddenTeacher(other, weight),
        backend=backend,
    )
    assert gaps == []
    assert len(memory[0]) == 5
