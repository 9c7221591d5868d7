import math

import pytest
import torch

from sdkernels.lab.model import Size
from sdkernels.lab.pretrain import BasePlan, rate_at, train_base
from sdkernels.lab.vocabulary import WORDS

PLAN = BasePlan(Size(16, 1, 2), steps=30, batch_tokens=512, learning_rate=1e-2)


def test_the_loss_starts_at_chance_and_falls() -> None:
    losses: list[float] = []
    model = train_base(PLAN, progress=lambda step, loss: losses.append(loss))
    assert losses[0] == pytest.approx(math.log(len(WORDS)), abs=0.2)
    assert losses[-1] < 0.8 * losses[0]
    assert len(losses) == PLAN.steps
    assert not model.training


def test_the_same_plan_gives_the_same_model() -> None:
    plan = BasePlan(Size(16, 1, 2), steps=3, batch_tokens=256)
    first, again = train_base(plan), train_base(plan)
    for ours, theirs in zip(first.parameters(), again.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_the_rate_rises_then_falls() -> None:
    rates = [rate_at(step, BasePlan(steps=100, learning_rate=1.0)) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert rates[4] == max(rates) == 1.0
    assert rates[4:] == sorted(rates[4:], reverse=True)
    assert 0.05 <= rates[-1] < 0.06
