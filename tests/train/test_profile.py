"""Where a step's time goes."""

from __future__ import annotations

import pytest

from sdkernels.train.profile import breakdown, table


def line(step, seconds, *, tokens=100, elapsed=10.0):
    full = {"rollout": None, "context": None, **seconds}
    return {
        "step": step,
        "num_tokens": tokens,
        "tokens_per_second": tokens / elapsed if tokens else None,
        "seconds": full,
        "peak_memory_bytes": step * 2**30,
    }


def test_means_without_the_first_step():
    lines = [
        line(1, {"rollout": 90.0}, elapsed=100.0),
        line(2, {"rollout": 4.0, "loss": 1.0}),
        line(3, {"rollout": 2.0, "loss": 3.0}, tokens=200, elapsed=6.0),
    ]
    profile = breakdown(lines)
    assert profile.steps == (2, 3)
    assert profile.seconds == {"rollout": 3.0, "loss": 2.0, "other": pytest.approx(3.0)}
    assert profile.total_seconds == pytest.approx(8.0)
    assert profile.tokens_per_second == pytest.approx(150 / 8)
    assert profile.tokens_per_second_without_rollout == pytest.approx(150 / 5)
    shown = table(profile)
    assert "mean of steps 2 to 3" in shown
    assert [row.split() for row in shown.splitlines()[2:4]] == [
        ["rollout", "3.000", "37.5%"],
        ["loss", "2.000", "25.0%"],
    ]
    assert "150 tokens in the loss: 18.8 a second, 30.0 without rollouts" in shown
    assert "peak memory 3.00 GiB" in shown


def test_a_single_step_says_that_it_is_the_first():
    assert "step 1, first calls included" in table(breakdown([line(1, {"loss": 1.0})]))
    assert table(breakdown([line(4, {"loss": 1.0})])).startswith("Time of step 4\n")


def test_nothing_to_profile():
    with pytest.raises(ValueError, match="nothing to profile"):
        breakdown([line(1, {"loss": 1.0}, tokens=0)])
