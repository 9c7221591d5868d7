"""What the papers let one expect of this world, as statements with a verdict from the intervals.

Written before the first run; docs/lab.md has them in prose. An expectation holds when the 95 %
interval of its difference lies on the expected side of 0, fails when it lies on the other, and is
open otherwise.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from sdkernels.lab.conditions import Cell
from sdkernels.lab.scales import ONE_FAMILY, SEVERAL_FAMILIES, Scale
from sdkernels.lab.summary import Estimate, Results, bootstrap

HOLDS, FAILS, OPEN = "holds", "fails", "open"
DEGRADE, ALIGN, DASD = "2603.24472", "2606.11173", "2605.22263"

Difference = Callable[[Results], "Estimate | None"]


@dataclass(frozen=True)
class Expectation:
    """A statement about a difference.

    Attributes:
        statement, source: what is expected, and who makes one expect it.
        sign: 1 where the difference should be above 0, -1 where below.
        metric: what differs.
        difference: from the results; None where cells for it are missing.
    """

    statement: str
    source: str
    sign: int
    metric: str
    difference: Difference


@dataclass(frozen=True)
class Verdict:
    """An expectation and what came out; `estimate` is None, and `outcome` open, without cells."""

    expectation: Expectation
    estimate: Estimate | None
    outcome: str


def judge(expectation: Expectation, results: Results) -> Verdict:
    """Compare an expectation with what was measured."""
    estimate = expectation.difference(results)
    if estimate is None:
        return Verdict(expectation, None, OPEN)
    low, high = sorted((expectation.sign * estimate.low, expectation.sign * estimate.high))
    outcome = HOLDS if low > 0 else FAILS if high < 0 else OPEN
    return Verdict(expectation, estimate, outcome)


def expectations(scale: Scale) -> list[Expectation]:
    """The expectations, for the coverages of this scale."""
    few, many = scale.coverages[:2][-1], scale.coverages[-1]
    middle = scale.routed_coverage
    parts = (_coverage(few, many), _families(middle), _alignment(middle), _routing(middle))
    return _premises() + [one for part in parts for one in part]


def _group(condition: str, coverage: int, families: tuple[str, ...] = SEVERAL_FAMILIES) -> str:
    return Cell(condition, coverage, families, 0).group


def _change(
    source: str, statement: str, sign: int, group: str, part: str, metric: str
) -> Expectation:
    """A change from the base model."""

    def found(results: Results) -> Estimate | None:
        return results.change(group, part, metric) if results.has(group) else None

    return Expectation(statement, source, sign, metric, found)


def _versus(
    source: str, statement: str, sign: int, groups: tuple[str, str], part: str, metric: str
) -> Expectation:
    """The first group minus the second."""

    def found(results: Results) -> Estimate | None:
        return results.difference(*groups, part, metric) if results.has(*groups) else None

    return Expectation(statement, source, sign, metric, found)


def _informed(statement: str, sign: int, metric: str) -> Expectation:
    """The base model as teacher that sees the solution, minus alone."""

    def found(results: Results) -> Estimate | None:
        told, alone = (
            np.array([results.facts["teacher"][name]["problems"][metric]])
            for name in ("solution", "none")
        )
        return bootstrap(told - alone)

    return Expectation(statement, DEGRADE, sign, metric, found)


def _without_wait(statement: str, part: str) -> Expectation:
    """The base model with `wait` banned, minus free."""

    def found(results: Results) -> Estimate | None:
        free = results.facts["sets"]["+".join(SEVERAL_FAMILIES)][part]["problems"]["accuracy"]
        banned = results.facts["without_wait"][part]["problems"]["accuracy"]
        return bootstrap(np.array([banned]) - np.array([free]))

    return Expectation(statement, "premise", -1, "accuracy", found)


def _premises() -> list[Expectation]:
    return [
        _without_wait("without wait the base model is less accurate in domain", "in_domain"),
        _without_wait("without wait the base model is less accurate on longer chains", "longer"),
        _informed("the base model is more accurate when it sees the solution", 1, "accuracy"),
        _informed("the base model waits less when it sees the solution", -1, "waits"),
    ]


def _coverage(few: int, many: int) -> list[Expectation]:
    pulls = {n: _group("pull_solution", n) for n in (few, many)}
    grpo = {n: _group("grpo", n) for n in (few, many)}
    hint = _group("pull_hint", many)
    return [
        _change(
            DEGRADE,
            f"{many} problems: the pull to the solution removes waits",
            -1,
            pulls[many],
            "in_domain",
            "waits",
        ),
        _versus(
            DEGRADE,
            f"{many} problems: the solution removes more waits than a hint",
            -1,
            (pulls[many], hint),
            "in_domain",
            "waits",
        ),
        _versus(
            DEGRADE,
            f"{few} problems: the pull to the solution beats GRPO on these problems",
            1,
            (pulls[few], grpo[few]),
            "seen",
            "accuracy",
        ),
        *(
            _change(
                DEGRADE,
                f"{few} problems: the pull to the solution loses accuracy on {title}",
                -1,
                pulls[few],
                part,
                "accuracy",
            )
            for part, title in (("longer", "longer chains"), ("other", "other families"))
        ),
        _versus(
            DEGRADE,
            f"the pull to the solution does better on other families with {many} than with {few}",
            1,
            (pulls[many], pulls[few]),
            "other",
            "accuracy",
        ),
        _versus(
            DEGRADE,
            f"GRPO gains more on fresh problems with {many} problems than with {few}",
            1,
            (grpo[many], grpo[few]),
            "in_domain",
            "accuracy",
        ),
        _versus(
            DEGRADE,
            f"{many} problems: GRPO beats the pull to the solution on longer chains",
            1,
            (grpo[many], pulls[many]),
            "longer",
            "accuracy",
        ),
    ]


def _families(middle: int) -> list[Expectation]:
    pulls = (_group("pull_solution", middle, ONE_FAMILY), _group("pull_solution", middle))
    statement = f"{middle} problems of one family harm other families more than of several"
    return [_versus(DEGRADE, f"{statement} (solution)", -1, pulls, "other", "accuracy")]


def _alignment(middle: int) -> list[Expectation]:
    critique, solution, grpo = (
        _group(name, middle) for name in ("pull_step_critique", "pull_solution", "grpo")
    )
    start = f"{middle} problems: the step critique"
    fresh = "in_domain"
    return [
        _versus(
            ALIGN,
            f"{start} beats the solution on fresh problems",
            1,
            (critique, solution),
            fresh,
            "accuracy",
        ),
        _versus(
            ALIGN,
            f"{start} beats GRPO on fresh problems",
            1,
            (critique, grpo),
            fresh,
            "accuracy",
        ),
        _versus(
            ALIGN,
            f"{start} keeps more waits than the solution",
            1,
            (critique, solution),
            fresh,
            "waits",
        ),
    ]


def _routing(middle: int) -> list[Expectation]:
    grpo, pull, push, dasd = (
        _group(name, middle) for name in ("grpo", "grpo_pull", "grpo_push", "dasd")
    )
    fresh = "in_domain"
    return [
        _versus(
            DASD,
            "GRPO with a uniform pull waits less than GRPO alone",
            -1,
            (pull, grpo),
            fresh,
            "waits",
        ),
        _versus(
            DASD,
            "GRPO with a uniform push has a lower step accuracy than GRPO alone",
            -1,
            (push, grpo),
            fresh,
            "step_accuracy",
        ),
        _versus(DASD, "DASD waits more than the uniform pull", 1, (dasd, pull), fresh, "waits"),
        _versus(
            DASD,
            "DASD is more accurate than GRPO alone on fresh problems",
            1,
            (dasd, grpo),
            fresh,
            "accuracy",
        ),
        _versus(
            DASD,
            "DASD is more accurate than the uniform pull on longer chains",
            1,
            (dasd, pull),
            "longer",
            "accuracy",
        ),
    ]
