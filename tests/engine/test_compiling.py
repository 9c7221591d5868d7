"""A function that calls back into Python is one graph break of a compiled model."""

import inspect
from typing import Any

import pytest
import torch
import torch._dynamo

import sdkernels as sd


class Model(torch.nn.Module):
    def __init__(self, how: str) -> None:
        super().__init__()
        self.how = how
        self.body = torch.nn.Linear(4, 4)
        self.head = torch.nn.Linear(4, 9, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.body(x).tanh()
        if self.how == "loss":
            loss, stats = sd.token_loss(hidden, self.head.weight, lambda s, tok: -s.entropy)
        else:
            stats = sd.token_stats(hidden, self.head.weight)
            loss = -stats.entropy.sum()
        return loss * 2 + stats.lse.detach().mean() + x.mean()


def _step(model: Any, parameters: list[torch.nn.Parameter]) -> list[torch.Tensor]:
    loss = model(torch.linspace(-1, 1, 24).reshape(6, 4))
    return [loss.detach(), *torch.autograd.grad(loss, parameters)]


@pytest.mark.parametrize("how", ["loss", "stats"])
def test_one_break_and_the_same_numbers(how: str) -> None:
    torch._dynamo.reset()
    model = Model(how)
    report = torch._dynamo.explain(model)(torch.ones(6, 4))
    assert report.graph_break_count == 1
    assert report.graph_count == 2
    torch._dynamo.reset()
    compiled = torch.compile(model, backend="eager")
    parameters = list(model.parameters())
    for found, right in zip(_step(compiled, parameters), _step(model, parameters), strict=True):
        torch.testing.assert_close(found, right)


def test_signatures_are_kept() -> None:
    assert list(inspect.signature(sd.token_loss).parameters)[:3] == ["hidden", "head", "loss_fn"]
    assert sd.token_stats.__doc__ is not None
