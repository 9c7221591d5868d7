"""float16 gradients of logits: what float16 has no digits for is scaled, and scaled back."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.logit_problems import DEVICE
from torch import Tensor

import sdkernels as sd
from sdkernels.engine.row_scale import HIDDEN_TARGET, LEAST, TARGET, Unit, row_scales, scaled_coefs
from sdkernels.kernels.rescale import TILE, TILES, rescale

T, D, V = 24, 24, 150
# A slab of float16 in plain torch, or a gradient of float16 beside a float32 slab.
WAYS = [{"backend": "torch", "slab_dtype": "model"}, {"backend": "triton"}]


def test_scales_are_powers_of_two_that_bring_every_token_to_one_size() -> None:
    coefs = {"logp": torch.tensor([[3.0, -4.0], [1e-9, 0.0], [0.0, 0.0]]), "entropy": torch.ones(3)}
    coefs["entropy"][1:] = torch.tensor([-1e-12, 0.0])
    scale_C = row_scales(coefs, 0.5, {"lse": torch.zeros(3)})
    assert (torch.frexp(scale_C).mantissa == 0.5).all()
    sizes = torch.tensor([0.5 * 8.0, 0.5 * (1e-9 + 1e-12)])
    reached = scale_C[:2] * sizes
    assert ((reached >= TARGET) & (reached < 2 * TARGET)).all()
    assert scale_C[2] == TARGET / LEAST
    found = scaled_coefs(coefs, scale_C)
    assert torch.equal(found["logp"], coefs["logp"] * scale_C[:, None])
    assert torch.equal(found["entropy"], coefs["entropy"] * scale_C)


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf, torch.nan])
def test_what_is_not_finite_stays_loud(bad: float) -> None:
    coefs = {"lse": torch.tensor([bad, 1.0])}
    found = scaled_coefs(coefs, row_scales(coefs, 1.0, {"lse": torch.zeros(2)}))["lse"]
    assert not found[0].isfinite()
    assert found[1].isfinite()


def test_a_unit_falls_and_never_rises() -> None:
    unit = Unit()

    def lower(*scales: float, size: float = 1.0) -> Tensor | None:
        return unit.lower(torch.tensor(scales), torch.full((len(scales), 3), -size))

    assert lower() is None
    assert unit.value is None
    assert lower(8.0, 2.0) is None
    assert lower(16.0) == 1.0
    assert lower(0.5, 4.0) == 0.25
    assert unit.value == 0.5 * HIDDEN_TARGET
    assert lower(0.5, size=1e-3) == 1.0
    assert lower(2.0, size=40.0) == 0.125


@pytest.mark.parametrize("count", [1, TILE * TILES, TILE * TILES + 17])
def test_a_tensor_is_multiplied_and_nothing_behind_it(count: int) -> None:
    memory = torch.arange(count + 5, dtype=torch.float32, device=DEVICE)
    expected = memory.clone()
    expected[:count] *= 0.25
    rescale(memory[:count], torch.tensor(0.25, device=DEVICE))
    assert torch.equal(memory, expected)
    rescale(memory[:count], torch.tensor(1.0, device=DEVICE))
    assert torch.equal(memory, expected)


# --- through the engine ---------------------------------------------------------------------------


class _Case:
    """A student, a teacher, and one upstream number a token and statistic."""

    def __init__(self, sizes_T: Tensor, spread: float = 2.0) -> None:
        generator = torch.Generator().manual_seed(0)

        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64).to(DEVICE)

        self.hidden, self.teacher_hidden = normal(T, D), normal(T, D)
        self.weight = normal(V, D) * spread / D**0.5
        self.teacher_weight = normal(V, D) * spread / D**0.5
        self.bias = normal(V)
        self.ids = torch.randint(V, (T,), generator=generator).to(DEVICE)
        self.factors = normal(4, T) * sizes_T.to(DEVICE)

    def gradients(
        self, dtype: torch.dtype, through: str = "token_loss", **settings: Any
    ) -> dict[str, Tensor]:
        """Of hidden, weight and bias, in float64, after a loss scale of 1024 and its removal."""
        hidden, weight, bias = (
            value.to(torch.float16).to(dtype).requires_grad_()
            for value in (self.hidden, self.weight, self.bias)
        )
        teacher_hidden, teacher_weight = (
            value.to(torch.float16).to(dtype)
            for value in (self.teacher_hidden, self.teacher_weight)
        )
        wide = torch.promote_types(dtype, torch.float32)
        names = ("kl_teacher_student", "kl_student_teacher", "entropy", "logp")
        tokens = {name: self.factors[i].to(wide) for i, name in enumerate(names)}
        arguments: dict[str, Any] = {
            "targets": self.ids,
            "teacher": sd.HiddenTeacher(teacher_hidden, teacher_weight),
            "temperature": 0.8,
            "chunk_bytes": 5 * V * 12,
        }
        head = sd.LMHead(weight, bias, scale=0.5)

        def loss_fn(s: Any, tok: Any) -> Tensor:
            return sum(getattr(s, name) * getattr(tok, name) for name in names)

        if through == "token_loss":
            loss, _ = sd.token_loss(hidden, head, loss_fn, tokens=tokens, **arguments, **settings)
        else:
            stats = sd.token_stats(hidden, head, **arguments, **settings)
            loss = loss_fn(stats, SimpleNamespace(**tokens)).sum()
        (loss * 1024.0).backward()
        leaves = {"hidden": hidden, "weight": weight, "bias": bias}
        return {name: leaf.grad.double() / 1024.0 for name, leaf in leaves.items()}


SIZES = {
    "one size": torch.ones(T, dtype=torch.float64),
    "a mean over very many tokens": torch.full((T,), 1e-7, dtype=torch.float64),
    "the first chunks without weight": (torch.arange(T) >= 12).double() * 1e-5,
    "growing from chunk to chunk": 10.0 ** torch.linspace(-7, 0, T, dtype=torch.float64),
    "falling from chunk to chunk": 10.0 ** torch.linspace(0, -7, T, dtype=torch.float64),
    "next to each other": torch.tensor([1.0, 1e-6, 0.0] * (T // 3), dtype=torch.float64),
}


@pytest.mark.parametrize("through", ["token_loss", "token_stats"])
@pytest.mark.parametrize("settings", WAYS, ids=["torch", "triton"])
@pytest.mark.parametrize("name", SIZES)
def test_every_token_keeps_its_digits_whatever_its_weight(
    name: str, settings: dict[str, Any], through: str
) -> None:
    case = _Case(SIZES[name])
    exact = case.gradients(torch.float64, backend="torch")
    found = case.gradients(torch.float16, through, **settings)
    # As far as float16 itself has them, once the gradient is handed over.
    smallest = torch.finfo(torch.float16).smallest_normal / 1024.0
    rows = {"hidden": -1, "weight": (), "bias": ()}
    for part, dims in rows.items():
        error = torch.linalg.vector_norm(found[part] - exact[part], dim=dims or None)
        size = torch.linalg.vector_norm(exact[part], dim=dims or None)
        assert (error <= 3e-3 * size + smallest * 2e-3 * D**0.5).all(), part


def test_large_log_ratios_fit() -> None:
    """KL(S||T) of hundreds of nats, whose gradient is far more than its weight. Not with logits in
    float16, which are off by a tenth there.
    """
    case = _Case(SIZES["one size"] * 1e-3, spread=120.0)
    case.factors[2:] = 0.0
    exact = case.gradients(torch.float64, backend="torch")
    found = case.gradients(torch.float16, backend="triton")
    assert exact["bias"].abs().max() > 0.01
    for part, value in exact.items():
        assert (found[part] - value).norm() <= 3e-3 * value.norm(), part


@pytest.mark.parametrize("p", [0.03, 0.2, 0.9])
def test_a_teacher_that_all_but_bans_what_the_student_says_fits(p: float) -> None:
    """KL(S||T) of thousands of nats, from logits masked with the smallest number of float16."""
    lowest = torch.finfo(torch.float16).min
    teacher_TV = torch.zeros(1, V, dtype=torch.float16, device=DEVICE)
    teacher_TV[0, 5] = lowest
    found: list[list[Tensor]] = []
    for dtype, backend in ((torch.float16, "triton"), (torch.float64, "torch")):
        hidden = torch.zeros(1, 16, dtype=dtype, device=DEVICE)
        hidden[0, 0] = 1
        weight = torch.zeros(V, 16, dtype=dtype, device=DEVICE)
        weight[5, 0] = torch.tensor(p / (1 - p) * (V - 1)).log().half()
        leaves = [hidden.requires_grad_(), weight.requires_grad_()]
        teacher = sd.LogitsTeacher(teacher_TV.to(dtype))
        loss, _ = sd.token_loss(
            *leaves, lambda s, tok: s.kl_student_teacher / 4096, teacher=teacher, backend=backend
        )
        found.append([grad.double() for grad in torch.autograd.grad(loss, leaves)])
    for half, exact in zip(*found, strict=True):
        assert exact.norm() > 0.1
        assert (half - exact).norm() <= 2e-3 * exact.norm()


@pytest.mark.parametrize("size", [1.0, 0.02])
@pytest.mark.parametrize("power", [10, 18, 24])
def test_a_large_coefficient_without_gradient_costs_the_others_no_digits(
    power: int, size: float
) -> None:
    case = _Case(SIZES["one size"])
    ids = case.ids[:, None].expand(-1, 2)
    coefs = torch.ones(T, 2, dtype=torch.float64, device=DEVICE)
    coefs[0] = torch.tensor([2.0**power, -(2.0**power)])
    found: list[Tensor] = []
    for dtype, backend in ((torch.float16, "triton"), (torch.float64, "torch")):
        weight = case.weight.half().to(dtype).requires_grad_()
        hidden = (case.hidden * size).half().to(dtype)
        logp = sd.token_stats(hidden, weight, targets=ids, backend=backend).logp
        (grad,) = torch.autograd.grad(logp, weight, coefs.to(logp.dtype) * 8)
        found.append(grad.double())
    assert (found[0] - found[1]).norm() <= 1e-3 * found[1].norm()


@pytest.mark.parametrize(("name", "bound"), [("kl_teacher_student", 1.5e-3), ("jsd", 4e-3)])
def test_a_flat_distribution_near_its_teacher_keeps_its_tail(name: str, bound: float) -> None:
    """Every entry of the gradient is small there, and the whole is made of them."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    hidden = normal(2, 64)
    weight = (normal(40_000, 64) * 0.6 / 8).half().double()
    nearby = (weight + 0.01 * 0.6 / 8 * normal(40_000, 64)).half()
    found: list[Tensor] = []
    for dtype, backend in ((torch.float16, "triton"), (torch.float64, "torch")):
        student = hidden.half().to(DEVICE, dtype).requires_grad_()
        teacher = sd.HiddenTeacher(student.detach(), nearby.to(DEVICE, dtype))
        loss, _ = sd.token_loss(
            student,
            weight.to(DEVICE, dtype),
            lambda s, tok: s[name],
            teacher=teacher,
            jsd_beta=0.5,
            backend=backend,
        )
        (grad,) = torch.autograd.grad(loss * 1024, student)
        found.append(grad.double())
    assert (found[0] - found[1]).norm() <= bound * found[1].norm()


def test_a_bfloat16_head_has_its_gradient_in_its_own_dtype_at_once() -> None:
    case = _Case(SIZES["one size"])
    weight = case.weight.bfloat16().requires_grad_()
    loss, _ = sd.token_loss(
        case.hidden.half(), weight, lambda s, tok: s.entropy, slab_dtype="model", backend="torch"
    )
    part = loss.grad_fn.parts[1]
    assert part.value.dtype == torch.bfloat16
    assert part.unit is None


@pytest.mark.parametrize("settings", WAYS, ids=["torch", "triton"])
def test_rows_of_a_frozen_head_are_scaled_back(settings: dict[str, Any]) -> None:
    case = _Case(SIZES["one size"])
    hidden = case.hidden.half().requires_grad_()
    logp = sd.token_stats(
        hidden, case.weight.half(), targets=case.ids, chunk_bytes=7 * V * 8, **settings
    ).logp
    upstream = 10.0 ** torch.linspace(-6, 2, T, device=DEVICE)
    (grad,) = torch.autograd.grad(logp, hidden, upstream)
    wide = case.hidden.half().double().requires_grad_()
    logits = wide @ case.weight.half().double().T
    exact_logp = logits.log_softmax(-1).gather(-1, case.ids[:, None]).squeeze(-1)
    (exact,) = torch.autograd.grad(exact_logp, wide, upstream.double())
    error = (grad.double() - exact).norm(dim=-1)
    assert (error <= 3e-3 * exact.norm(dim=-1) + 6e-8 * D**0.5).all()
