"""Switches over whole steps: what they watch, and their place in checkpoints."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sdkernels import gates
from sdkernels.engine import TokenStats
from sdkernels.train.step_switches import StepSwitches, split_state


def observe(
    switches: StepSwitches, *parts: list[float], names: tuple[str, ...] = ("teacher_entropy",)
) -> None:
    """Micro-batches whose last token is left out of the loss."""
    for part in parts:
        keep = torch.ones(len(part) + 1, dtype=torch.bool)
        keep[-1] = False
        stats = TokenStats(dict.fromkeys(names, torch.tensor([*part, float("nan")])))
        switches.observe(SimpleNamespace(keep_N=keep, teacher=object(), signal_N=None), stats)


def same(values: torch.Tensor) -> torch.Tensor:
    return values


def test_the_gate_sees_the_mean_over_the_micro_batches():
    gate = gates.Schmitt(warmup_steps=1)
    switches = StepSwitches(gate, None)
    observe(switches, [1.0, 2.0, 3.0], [6.0])
    switches.after_step(same)
    assert gate.reference_nats == pytest.approx(3.0)  # of tokens, not of micro-batches
    observe(switches, [2.0])
    assert gate.is_on  # not before the step is done
    switches.after_step(same)
    assert not gate.is_on


def test_a_teacher_without_a_context_does_not_count():
    """What it says is the student's own opinion, and how many rows lack one varies by the step."""
    gate = gates.Schmitt(warmup_steps=1)
    switches = StepSwitches(gate, entropy_ceiling=2.0)
    values = torch.tensor([1.0, 3.0, 8.0])
    batch = SimpleNamespace(
        keep_N=torch.ones(3, dtype=torch.bool),
        teacher=object(),
        signal_N=torch.tensor([1.0, 1.0, 0.0]),
    )
    switches.observe(batch, TokenStats({"teacher_entropy": values, "entropy": values}))
    switches.after_step(same)
    assert gate.reference_nats == pytest.approx(2.0)
    assert switches.state()["step_switch.entropy"][1] == pytest.approx(4.0)  # the student's: all


def test_ranks_share_one_mean():
    gate = gates.Schmitt(warmup_steps=1)
    switches = StepSwitches(gate, None)
    observe(switches, [1.0])
    switches.after_step(lambda own: own + torch.tensor([9.0, 4.0]))
    assert gate.reference_nats == pytest.approx(2.0)


def test_an_abandoned_or_empty_step_leaves_no_trace():
    gate = gates.Schmitt(warmup_steps=1)
    switches = StepSwitches(gate, None)
    observe(switches, [1.0])
    switches.start_step()
    switches.after_step(same)
    assert gate.reference_nats is None
    observe(switches, [])
    switches.after_step(same)
    assert gate.reference_nats is None


def test_the_ceiling_watches_the_student():
    switches = StepSwitches(None, 1.5)
    seen = []
    for entropy in (2.0, 2.0, 2.0, 2.0, 2.0, 2.9, 3.1, 2.6, 2.5):
        observe(switches, [entropy], names=("entropy",))
        switches.after_step(same)
        seen.append(switches.too_hot)
    assert seen == [False] * 6 + [True, True, False]


def test_checkpoints():
    gate = gates.Schmitt(warmup_steps=2)
    before = StepSwitches(gate, 1.5)
    for entropy in (2.0, 2.0, 1.0):
        observe(before, [entropy], names=("entropy", "teacher_entropy"))
        before.after_step(same)
    own, switches = split_state({"model.weight": torch.ones(1)} | before.state())
    assert list(own) == ["model.weight"]
    resumed = gates.Schmitt(warmup_steps=2)
    after = StepSwitches(resumed, 1.5)
    after.load_state(switches)
    assert resumed.state_dict() == gate.state_dict()
    assert not resumed.is_on
    assert all(torch.equal(after.state()[name], t) for name, t in before.state().items())


def test_a_recipe_without_switches_costs_nothing():
    switches = StepSwitches(gates.DirectionAdaptive(), None)
    observe(switches, [1.0])
    switches.after_step(lambda _: pytest.fail("no rank has to wait"))
    assert switches.state() == {}
    assert not switches.too_hot
