"""Estimators over sampled answers: Pass@k, Maj@k, and intervals.

All work on per-problem numbers, because problems are what is sampled from: resampling single
answers would treat the k answers to one problem as k problems and give intervals that are too
narrow.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from statistics import NormalDist

import numpy as np

RESAMPLES = 2000
PICKS_AT_ONCE = 2**20  # 8 MiB of indices, whatever the number of problems


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Chance that k of `num_samples` answers, drawn without replacement, hold a correct one.

    1 - C(n - c, k) / C(n, k), the unbiased estimator of HumanEval (2107.03374, eq. 1).

    Raises:
        ValueError: k or the counts are out of range.
    """
    if not 0 <= num_correct <= num_samples:
        raise ValueError(f"num_correct={num_correct}: expected 0 to num_samples = {num_samples}")
    if not 1 <= k <= num_samples:
        raise ValueError(f"k={k}: expected 1 to num_samples = {num_samples}")
    return 1.0 - math.comb(num_samples - num_correct, k) / math.comb(num_samples, k)


def majority_correct(answers: Sequence[str | None], correct: Sequence[bool]) -> float:
    """Whether the most frequent answer is correct, ties shared equally among the tied answers.

    Answers are compared as extracted. None (no answer found) has no vote; without any vote the
    result is 0.
    """
    if len(answers) != len(correct):
        raise ValueError(f"answers and correct differ in length: {len(answers)} and {len(correct)}")
    votes = Counter(answer for answer in answers if answer is not None)
    if not votes:
        return 0.0
    most = max(votes.values())
    winners = {answer for answer, count in votes.items() if count == most}
    verdicts: dict[str, bool] = {}
    for answer, right in zip(answers, correct, strict=True):
        if answer in winners:
            verdicts[answer] = right
    return sum(verdicts.values()) / len(verdicts)


def bootstrap_interval(
    values: Sequence[float], *, seed: int = 0, level: float = 0.95, resamples: int = RESAMPLES
) -> tuple[float, float]:
    """Percentile bootstrap interval of the mean over problems; the same seed gives the same
    interval.

    Raises:
        ValueError: no values, or a level outside (0, 1).
    """
    _check("values", values, level)
    array = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    # In blocks, which draw the same numbers as one draw of all would.
    rows = max(1, PICKS_AT_ONCE // len(array))
    means = np.empty(resamples)
    for start in range(0, resamples, rows):
        stop = min(start + rows, resamples)
        picks = generator.integers(0, len(array), size=(stop - start, len(array)))
        means[start:stop] = array[picks].mean(axis=1)
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def share_interval(
    shares: Sequence[float], *, seed: int = 0, level: float = 0.95
) -> tuple[float, float]:
    """Interval of the mean of shares, one for each problem: `bootstrap_interval`, or Wilson's.

    Where all problems have the same share, every resample is equal, and the bootstrap would call
    0 right of 8 as sure as 0 right of 8000. Wilson's score interval (JASA 22, 1927) for that share
    among as many trials as there are problems then says what so few can: 0 of n gives
    [0, z^2 / (n + z^2)]. It takes the answers to one problem for one, as no spread tells more.

    Raises:
        ValueError: no shares, one outside [0, 1] or NaN, or a level outside (0, 1).
    """
    _check("shares", shares, level)
    for index, share in enumerate(shares):
        if not 0 <= share <= 1:
            raise ValueError(f"shares[{index}]={share}: expected numbers from 0 to 1")
    if min(shares) < max(shares):
        return bootstrap_interval(shares, seed=seed, level=level)
    n, share = len(shares), float(shares[0])
    z2 = NormalDist().inv_cdf((1 + level) / 2) ** 2
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = math.sqrt(z2 * share * (1 - share) / n + (z2 / (2 * n)) ** 2) / (1 + z2 / n)
    # At the ends one bound is the share itself, but for its rounding.
    return min(share, max(0.0, centre - half)), max(share, min(1.0, centre + half))


def _check(name: str, values: Sequence[float], level: float) -> None:
    if not len(values):
        raise ValueError(f"{name} is empty: an interval needs at least one problem")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a number between 0 and 1")


def paired_difference(
    before: Sequence[float], after: Sequence[float], *, seed: int = 0, level: float = 0.95
) -> dict[str, float | int | list[float]]:
    """Mean of after - before over the same problems, with its bootstrap interval.

    Pairing takes the problems' own difficulty out, so the interval is narrower than those of the
    two means.

    Raises:
        ValueError: the lists are not of one length, or empty.
    """
    if len(before) != len(after):
        raise ValueError(
            f"before and after must be the same problems in the same order, got {len(before)} and "
            f"{len(after)}"
        )
    differences = [b - a for a, b in zip(before, after, strict=True)]
    low, high = bootstrap_interval(differences, seed=seed, level=level)
    return {
        "difference": float(np.mean(differences)),
        "interval": [low, high],
        "better": sum(d > 0 for d in differences),
        "worse": sum(d < 0 for d in differences),
        "n": len(differences),
    }
