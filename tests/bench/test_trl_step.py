import argparse

import pytest

from bench import trl_step


@pytest.mark.parametrize("name", trl_step.TRAINERS)
def test_before_after_and_the_layer_are_measured(name: str) -> None:
    flags = argparse.Namespace(tokens=16, hidden=16, vocab=64, rounds=1, threads=1)
    found = trl_step.measure(name, flags)
    assert found.keys() == {"before", "after", "layer"}
    for side in found.values():
        assert side["seconds"]["median"] > 0
