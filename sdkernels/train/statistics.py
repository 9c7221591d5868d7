"""Estimators over sampled answers: Pass@k, Maj@k, and bootstrap intervals.

All work on per-problem numbers, because problems are what is sampled from: resampling single
answers would treat the k answers to one problem as k problems and give intervals that are too
narrow.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

import numpy as np

RESAMPLES = 2000


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
    if not len(values):
        raise ValueError("values is empty: an interval needs at least one problem")
    if not 0 < level < 1:
        raise ValueError(f"level={level}: expected a number between 0 and 1")
    array = np.asarray(values, dtype=np.float64)
    generator = np.random.default_rng(seed)
    picks = generator.integers(0, len(array), size=(resamples, len(array)))
    low, high = np.quantile(array[picks].mean(axis=1), [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


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
