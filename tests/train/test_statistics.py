"""Pass@k, Maj@k and intervals."""

from __future__ import annotations

import itertools
import random
import tracemalloc

import pytest

from sdkernels.train import statistics
from sdkernels.train.statistics import (
    bootstrap_interval,
    majority_correct,
    paired_difference,
    pass_at_k,
    share_interval,
)


@pytest.mark.parametrize(("n", "c"), [(5, 0), (5, 1), (5, 3), (5, 5), (1, 1), (4, 2)])
def test_pass_at_k_counts_all_draws(n, c):
    answers = [True] * c + [False] * (n - c)
    for k in range(1, n + 1):
        draws = list(itertools.combinations(answers, k))
        assert pass_at_k(n, c, k) == pytest.approx(sum(map(any, draws)) / len(draws))


def test_pass_at_one_is_the_mean():
    assert pass_at_k(8, 3, 1) == pytest.approx(3 / 8)


@pytest.mark.parametrize(("n", "c", "k"), [(4, 5, 1), (4, -1, 1), (4, 2, 0), (4, 2, 5)])
def test_pass_at_k_refuses_impossible_counts(n, c, k):
    with pytest.raises(ValueError, match="expected"):
        pass_at_k(n, c, k)


def test_majority():
    assert majority_correct(["3", "3", "4"], [True, True, False]) == 1.0
    assert majority_correct(["3", "4", "4"], [True, False, False]) == 0.0
    assert majority_correct(["3", "4"], [True, False]) == 0.5  # a tie is shared, not won by order
    assert majority_correct(["4", "3"], [False, True]) == 0.5
    assert majority_correct([None, None, "3"], [False, False, True]) == 1.0  # None has no vote
    assert majority_correct([None], [False]) == 0.0
    with pytest.raises(ValueError, match="differ in length"):
        majority_correct(["3"], [])


def test_bootstrap_interval_covers_and_shrinks():
    draw = random.Random(1)
    narrow = [draw.random() < 0.3 for _ in range(2000)]
    low, high = bootstrap_interval([float(x) for x in narrow])
    mean = sum(narrow) / len(narrow)
    # Normal theory: 1.96 * sqrt(.21 / 2000) = .0201 to each side.
    assert mean - low == pytest.approx(0.0201, abs=0.003)
    assert high - mean == pytest.approx(0.0201, abs=0.003)


def test_bootstrap_is_seeded_and_exact_without_spread():
    values = [0.0, 1.0, 0.5, 0.25]
    assert bootstrap_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    assert bootstrap_interval(values, seed=3) != bootstrap_interval(values, seed=4)
    assert bootstrap_interval([0.5] * 7) == (0.5, 0.5)
    with pytest.raises(ValueError, match="empty"):
        bootstrap_interval([])
    with pytest.raises(ValueError, match="level"):
        bootstrap_interval([1.0], level=1.0)


def test_bootstrap_in_blocks_is_the_bootstrap_at_once(monkeypatch):
    values = [i % 7 / 7 for i in range(101)]
    once = bootstrap_interval(values, seed=5)
    for picks in (1, 101 * 3, 101 * 1999):  # one resample at a time, blocks that do and do not fit
        monkeypatch.setattr(statistics, "PICKS_AT_ONCE", picks)
        assert bootstrap_interval(values, seed=5) == once


def test_bootstrap_memory_does_not_grow_with_the_problems():
    values = [0.0, 1.0] * 10_000
    tracemalloc.start()
    bootstrap_interval(values, resamples=200)
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    at_once = 2 * 8 * 200 * len(values)  # indices and picked values
    assert peak_bytes < 3 * 8 * statistics.PICKS_AT_ONCE < at_once


def test_all_wrong_and_all_right_are_not_certain():
    for n in (1, 8, 32):
        low, high = share_interval([0.0] * n)
        assert (low, high) == (0.0, pytest.approx(3.8415 / (n + 3.8415), rel=1e-4))
        assert share_interval([1.0] * n) == (pytest.approx(1 - high), 1.0)
    # 10 of 20 by Wilson, tabulated: .299 to .701.
    assert share_interval([0.5] * 20) == (
        pytest.approx(0.2993, abs=1e-4),
        pytest.approx(0.7007, abs=1e-4),
    )
    assert share_interval([0.0] * 8, level=0.5)[1] < share_interval([0.0] * 8)[1]


def test_shares_that_differ_are_bootstrapped():
    values = [0.0, 1.0, 0.5, 0.25]
    assert share_interval(values, seed=3) == bootstrap_interval(values, seed=3)
    for wrong in ([0.5, 1.5], [-0.1, 0.2], [-1.0]):
        with pytest.raises(ValueError, match="expected numbers from 0 to 1"):
            share_interval(wrong)
    with pytest.raises(ValueError, match="shares is empty"):
        share_interval([])


@pytest.mark.parametrize("shares", [[0.5, float("nan")], [float("nan"), 0.5], [0.0, 0.5, -0.1]])
def test_a_wrong_share_is_named_wherever_it_stands(shares):
    with pytest.raises(ValueError, match=r"shares\[\d\]=(nan|-0.1): expected numbers from 0 to 1"):
        share_interval(shares)


def test_paired_difference_sees_what_two_intervals_do_not():
    before = [i / 100 for i in range(100)]
    after = [value + 0.02 for value in before]
    result = paired_difference(before, after)
    assert result["difference"] == pytest.approx(0.02)
    assert result["interval"][0] > 0.019
    assert (result["better"], result["worse"], result["n"]) == (100, 0, 100)
    low, high = bootstrap_interval(before)
    assert low < sum(after) / 100 < high
    with pytest.raises(ValueError, match="same problems"):
        paired_difference([1.0], [])
