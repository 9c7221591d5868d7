"""Settings of the suite that take milliseconds, and peers made for the tests."""

import pytest
import torch

from sdkernels.bench import cases, shapes
from sdkernels.bench.peer import Peer
from sdkernels.bench.peers.eager import PEERS as EAGER
from sdkernels.bench.problem import Problem, Setting
from sdkernels.bench.runner import Effort


@pytest.fixture
def quick() -> Effort:
    return Effort(repeats=3, seconds=0.0)


@pytest.fixture(autouse=True)
def no_large_copies(monkeypatch):
    """Copies of the inputs for a cache of 64 KiB, a device copy of 1 MiB."""
    monkeypatch.setattr("sdkernels.bench.runner.cache_bytes", lambda device: 1 << 16)
    monkeypatch.setattr("sdkernels.bench.floor.COPY_BYTES", {"cpu": 1 << 20})
    monkeypatch.setattr("sdkernels.bench.floor.CHOICE_SECONDS", 0.01)


@pytest.fixture
def setting():
    """`setting("jsd", tokens=16, ...)` at the tiny shape."""

    def make(case="kl-teacher-student", tokens=16, shape="40x300", **more) -> Setting:
        return Setting(cases.get(case), shapes.get(shape), tokens, **more)

    return make


@pytest.fixture
def eager() -> Peer:
    return EAGER[0]


@pytest.fixture
def scaled(eager):
    """`scaled(name, value=, gradient=)`: eager PyTorch with value and gradients multiplied."""

    def make(name: str, *, value: float = 1.0, gradient: float = 1.0) -> Peer:
        def call(problem: Problem) -> torch.Tensor:
            loss = eager.calls[problem.setting.case.name](problem)
            loss.backward()
            for leaf in problem.leaves:
                leaf.grad *= gradient
            return loss.detach() * value

        return Peer(name, name, dict.fromkeys(eager.calls, call))

    return make
