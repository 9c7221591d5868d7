from pathlib import Path

import pytest

from sdkernels.lab.expectations import FAILS, HOLDS, OPEN, Expectation, expectations, judge
from sdkernels.lab.scales import SCALES, Scale
from sdkernels.lab.summary import Estimate, Results


@pytest.mark.parametrize(
    ("sign", "low", "high", "outcome"),
    [
        (1, 0.1, 0.3, HOLDS),
        (1, -0.1, 0.3, OPEN),
        (1, -0.3, -0.1, FAILS),
        (-1, 0.1, 0.3, FAILS),
        (-1, -0.3, 0.1, OPEN),
        (-1, -0.3, -0.1, HOLDS),
        (1, 0.0, 0.3, OPEN),
    ],
)
def test_verdicts_follow_the_interval(sign: int, low: float, high: float, outcome: str) -> None:
    estimate = Estimate((low + high) / 2, low, high)
    expectation = Expectation("x", "y", sign, "accuracy", lambda results: estimate)
    assert judge(expectation, None).outcome == outcome  # type: ignore[arg-type]


def test_what_was_not_run_is_open(toy: Scale, toy_run: Path) -> None:
    results = Results(toy_run, toy.cells(1))
    verdicts = [judge(one, results) for one in expectations(SCALES["default"])]
    # The premises need the base model only; this run has no cell of 256 problems, or of 8.
    assert [one.estimate is not None for one in verdicts[:4]] == [True] * 4
    assert all(one.estimate is None and one.outcome == OPEN for one in verdicts[4:])


def test_what_was_run_is_judged(toy: Scale, toy_run: Path) -> None:
    results = Results(toy_run, toy.cells(1))
    found = {one.statement: judge(one, results) for one in expectations(toy)}
    judged = {statement for statement, one in found.items() if one.estimate is not None}
    missing = {statement for statement in found if "critique" in statement or "push" in statement}
    missing |= {"2 problems: the solution removes more waits than a hint"}
    missing |= {statement for statement in found if "uniform pull" in statement}
    assert judged == set(found) - missing


def test_the_signs_are_those_of_the_papers() -> None:
    """A flipped sign would turn a finding into its opposite."""
    signs = {one.statement: one.sign for one in expectations(SCALES["default"])}
    falling = ("less", "removes", "loses", "harm", "lower")
    for statement, sign in signs.items():
        assert sign == (-1 if any(word in statement for word in falling) else 1), statement
    assert len(signs) == 21
