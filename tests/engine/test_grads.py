"""Gradients that wait for their upstream factor."""

import pytest
import torch

from sdkernels.engine.grads import graph_is_kept, needs_grad, scaled

PART = torch.randn(40, 30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("reuse", [True, False])
@pytest.mark.parametrize("shape", [(40, 30), (1200,), (4, 10, 30), (0, 30)])
@pytest.mark.parametrize(
    ("held", "dtype"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float16),
        (torch.float64, torch.float16),
    ],
)
def test_scaled(
    held: torch.dtype,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    reuse: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sdkernels.engine.grads.SCALED_AT_ONCE", 100)
    source = PART.reshape(-1)[: torch.Size(shape).numel()].reshape(shape)
    for factor in (1 / 3, 1.0, -7.0):
        part = source.to(held)
        before = part.clone()
        result = scaled(part, torch.tensor(factor), dtype, reuse=reuse)
        wide = torch.promote_types(held, torch.float32)
        expected = (before.to(wide) * torch.tensor(factor, dtype=wide)).to(dtype)
        assert result.dtype == dtype
        assert result.shape == shape
        # A float32 factor is what the caller has; in float64 it is that rounded number.
        torch.testing.assert_close(result, expected, rtol=1e-7, atol=0)
        if reuse and held == dtype and part.numel():
            assert result.data_ptr() == part.data_ptr()
        else:
            assert torch.equal(part, before)


def test_needs_grad() -> None:
    leaf = torch.ones(1, requires_grad=True)
    assert needs_grad(leaf)
    assert not needs_grad(None)
    assert not needs_grad(leaf.detach())
    with torch.no_grad():
        assert not needs_grad(leaf)


def test_graph_is_kept_asks_the_running_backward() -> None:
    """Pins the private torch function; where it goes away, gradients are copied, never wrong."""
    answers = []
    for keep in (True, False):
        leaf = torch.ones(1, requires_grad=True)
        leaf.register_hook(lambda grad: answers.append(graph_is_kept()))
        (leaf * 2).sum().backward(retain_graph=keep)
    assert answers == [True, False]


def test_without_the_private_function_every_graph_counts_as_kept(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = "_get_current_graph_task_keep_graph"
    monkeypatch.delattr(torch._C._autograd, name, raising=True)
    assert graph_is_kept()
