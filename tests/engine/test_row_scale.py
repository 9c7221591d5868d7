"""float16 gradients of logits: what float16 has no digits for is scaled, and scaled back."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from helpers.logit_problems import DEVICE
from torch import Tensor

import sdkernels as sd
from sdkernels.engine.row_scale import LEAST, TARGET, Unit, row_scales, scaled_coefs
from sdkernels.kernels.rescale import TILE, TILES, rescale

T, D, V = 24, 24, 150
# A slab of float16 in plain torch, or a gradient of float16 beside a float32 slab.
WAYS = [{"backend": "torch", "slab_dtype": "model"}, {"backend": "triton"}]


def test_scales_are_powers_of_two_that_bring_every_token_to_one_size() -> None:
    coefs = {"logp": torch.tensor([[3.0, -4.0], [1e-9, 0.0], [0.0, 0.0]]), "entropy": torch.ones(3)}
    coefs["entropy"][1:] = torch.tensor([-1e-12, 0.0])
    scale_C = row_scales(coefs, 0.5, torch.zeros(3))
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
    found = scaled_coefs(coefs, row_scales(coefs, 1.0, torch.zeros(2)))["lse"]
    assert not found[0].isfinite()
    assert found[1].isfinite()


def test_a_unit_falls_and_never_rises() -> None:
    unit = Unit()
    assert unit.lower(torch.empty(0)) is None
    assert unit.value is None
    assert unit.lower(torch.tensor([8.0, 2.0])) is None
    assert unit.lower(torch.tensor([16.0])) == 1.0
    assert unit.lower(torch.tensor([0.5, 4.0])) == 0.25
    assert unit.value == 0.5


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
