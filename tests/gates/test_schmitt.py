"""One switch for all tokens, step by step."""

import json
import math

import pytest
import torch

from sdkernels.gates import Schmitt


def warmed(*entropies: float, **settings: float) -> Schmitt:
    gate = Schmitt(**settings)
    for entropy in entropies:
        assert gate.update(entropy)
    return gate


def test_schmitt_is_on_until_its_median_is_known() -> None:
    gate = warmed(3.0, 1.0, 2.0, 9.0)
    assert gate.reference_nats is None
    assert gate.update(0.01)  # the fifth: still warm-up
    assert gate.reference_nats == 2.0


def test_schmitt_switches_with_hysteresis() -> None:
    gate = warmed(2.0, 2.0, 2.0, 2.0, 2.0)
    seen = [gate.update(entropy) for entropy in (1.87, 1.85, 1.9, 1.99, 2.0, 1.87)]
    assert seen == [True, False, False, False, True, True]


def test_schmitt_as_a_ceiling() -> None:
    gate = warmed(2.0, off_ratio=1.5, on_ratio=1.2, warmup_steps=1)
    seen = [gate.update(entropy) for entropy in (2.9, 3.1, 2.5, 2.4, 2.9)]
    assert seen == [True, False, False, True, True]


def test_schmitt_gives_every_token_one_direction() -> None:
    gate = warmed(2.0, warmup_steps=1)
    mask = torch.ones(2, 3, dtype=torch.bool)
    H_BL = torch.rand(2, 3, dtype=torch.float64)
    for entropy, expected in ((2.0, 1.0), (0.5, 0.0)):
        gate.update(entropy)
        bound = gate.bind(None, mask)
        assert bound.direction(H_BL, bound.tau, bound.sigma).tolist() == [[expected] * 3] * 2
    assert not gate.needs_entropy


def test_schmitt_resumes() -> None:
    for steps in range(8):
        entropies = [2.0, 2.2, 1.8, 1.0, 1.9, 2.0, 1.0, 2.0]
        whole, before, after = (Schmitt(warmup_steps=3) for _ in range(3))
        for entropy in entropies:
            whole.update(entropy)
        for entropy in entropies[:steps]:
            before.update(entropy)
        after.load_state_dict(json.loads(json.dumps(before.state_dict())))
        for entropy in entropies[steps:]:
            after.update(entropy)
        assert after.state_dict() == whole.state_dict()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"off_ratio": 0.0}, "off_ratio=0.0"),
        ({"on_ratio": math.nan}, "on_ratio=nan"),
        ({"off_ratio": 1.0, "on_ratio": 1.0}, "no hysteresis"),
        ({"warmup_steps": 0}, "warmup_steps=0"),
    ],
)
def test_schmitt_refuses(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Schmitt(**settings)
    with pytest.raises(ValueError, match="entropy=nan"):
        Schmitt().update(math.nan)


def test_schmitt_stays_on_at_the_threshold_itself() -> None:
    gate = warmed(2.0, off_ratio=0.5, on_ratio=1.0, warmup_steps=1)
    assert gate.update(1.0)
    assert not gate.update(0.999)


def test_schmitt_does_not_take_its_state_along() -> None:
    gate = warmed(1.0, warmup_steps=3)
    state = gate.state_dict()
    gate.update(2.0)
    assert state == {"is_on": True, "warmup_nats": [1.0]}
