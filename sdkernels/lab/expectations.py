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
Row = tuple[str, str, str, int, Difference]


@dataclass(frozen=True)
class Expectation:
    """A statement, where it comes from, and the difference that it says is above (1) or below (-1)
    0; None where the cells for it are missing.
    """

    key: str
    source: str
    statement: str
    sign: int
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


def group(condition: str, coverage: int, families: tuple[str, ...] = SEVERAL_FAMILIES) -> str:
    """The name of a group of cells."""
    return Cell(condition, coverage, families, 0).group


def change(name: str, part: str, metric: str) -> Difference:
    """Change from the base model."""

    def found(results: Results) -> Estimate | None:
        return results.change(name, part, metric) if results.has(name) else None

    return found


def versus(name: str, other: str, part: str, metric: str) -> Difference:
    """Difference between two groups."""

    def found(results: Results) -> Estimate | None:
        if not results.has(name, other):
            return None
        return results.difference(name, other, part, metric)

    return found


def teacher(context: str, metric: str) -> Difference:
    """The base model as teacher under a context, minus without one."""

    def found(results: Results) -> Estimate | None:
        told, alone = (
            np.array([results.facts["teacher"][name]["problems"][metric]])
            for name in (context, "none")
        )
        return bootstrap(told - alone)

    return found


def without_wait(part: str) -> Difference:
    """Accuracy of the base model with `wait` banned, minus with it."""

    def found(results: Results) -> Estimate | None:
        free = results.facts["sets"]["+".join(SEVERAL_FAMILIES)][part]["problems"]["accuracy"]
        banned = results.facts["without_wait"][part]["problems"]["accuracy"]
        return bootstrap(np.array([banned]) - np.array([free]))

    return found


def expectations(scale: Scale) -> list[Expectation]:
    """The expectations, for the coverages of this scale."""
    few, many, middle = scale.coverages[1], scale.coverages[-1], scale.routed_coverage
    rows = [*_premises(), *_coverage(few, many), *_families(middle), *_alignment(middle)]
    return [Expectation(*row) for row in [*rows, *_routing(middle)]]


def _premises() -> list[Row]:
    banned, told = without_wait, teacher
    return [
        (
            "waits help",
            "premise",
            "without wait the base model is less accurate in domain",
            -1,
            banned("in_domain"),
        ),
        (
            "waits help on longer",
            "premise",
            "without wait the base model is less accurate on longer chains",
            -1,
            banned("longer"),
        ),
        (
            "teacher accuracy",
            DEGRADE,
            "the base model is more accurate when it sees the solution",
            1,
            told("solution", "accuracy"),
        ),
        (
            "teacher waits",
            DEGRADE,
            "the base model waits less when it sees the solution",
            -1,
            told("solution", "waits"),
        ),
    ]


def _coverage(few: int, many: int) -> list[Row]:
    pull_few, pull_many = group("pull_solution", few), group("pull_solution", many)
    grpo_few, grpo_many = group("grpo", few), group("grpo", many)
    hint = group("pull_hint", many)
    return [
        (
            "waits fall",
            DEGRADE,
            f"{many} problems: the pull to the solution removes waits",
            -1,
            change(pull_many, "in_domain", "waits"),
        ),
        (
            "richness",
            DEGRADE,
            f"{many} problems: the solution removes more waits than a hint",
            -1,
            versus(pull_many, hint, "in_domain", "waits"),
        ),
        (
            "fast in domain",
            DEGRADE,
            f"{few} problems: the pull to the solution beats GRPO on these problems",
            1,
            versus(pull_few, grpo_few, "seen", "accuracy"),
        ),
        (
            "harm on longer",
            DEGRADE,
            f"{few} problems: the pull to the solution loses accuracy on longer chains",
            -1,
            change(pull_few, "longer", "accuracy"),
        ),
        (
            "harm on other",
            DEGRADE,
            f"{few} problems: the pull to the solution loses accuracy on other families",
            -1,
            change(pull_few, "other", "accuracy"),
        ),
        (
            "coverage heals",
            DEGRADE,
            f"the pull to the solution does better on other families with {many} than with {few}",
            1,
            versus(pull_many, pull_few, "other", "accuracy"),
        ),
        (
            "GRPO scales",
            DEGRADE,
            f"GRPO gains more on fresh problems with {many} problems than with {few}",
            1,
            versus(grpo_many, grpo_few, "in_domain", "accuracy"),
        ),
        (
            "GRPO generalises",
            DEGRADE,
            f"{many} problems: GRPO beats the pull to the solution on longer chains",
            1,
            versus(grpo_many, pull_many, "longer", "accuracy"),
        ),
    ]


def _families(middle: int) -> list[Row]:
    one, several = group("pull_solution", middle, ONE_FAMILY), group("pull_solution", middle)
    return [
        (
            "one family",
            DEGRADE,
            f"{middle} problems of one family harm other families more than of several (solution)",
            -1,
            versus(one, several, "other", "accuracy"),
        ),
    ]


def _alignment(middle: int) -> list[Row]:
    critique, solution, grpo = (
        group(name, middle) for name in ("pull_step_critique", "pull_solution", "grpo")
    )
    return [
        (
            "critique beats solution",
            ALIGN,
            f"{middle} problems: the step critique beats the solution on fresh problems",
            1,
            versus(critique, solution, "in_domain", "accuracy"),
        ),
        (
            "critique beats GRPO",
            ALIGN,
            f"{middle} problems: the step critique beats GRPO on fresh problems",
            1,
            versus(critique, grpo, "in_domain", "accuracy"),
        ),
        (
            "critique keeps waits",
            ALIGN,
            f"{middle} problems: the step critique keeps more waits than the solution",
            1,
            versus(critique, solution, "in_domain", "waits"),
        ),
    ]


def _routing(middle: int) -> list[Row]:
    grpo, pull, push, dasd = (
        group(name, middle) for name in ("grpo", "grpo_pull", "grpo_push", "dasd")
    )
    return [
        (
            "pull removes waits",
            DASD,
            "GRPO with a uniform pull waits less than GRPO alone",
            -1,
            versus(pull, grpo, "in_domain", "waits"),
        ),
        (
            "push breaks steps",
            DASD,
            "GRPO with a uniform push has a lower step accuracy than GRPO alone",
            -1,
            versus(push, grpo, "in_domain", "step_accuracy"),
        ),
        (
            "DASD keeps waits",
            DASD,
            "DASD waits more than the uniform pull",
            1,
            versus(dasd, pull, "in_domain", "waits"),
        ),
        (
            "DASD is accurate",
            DASD,
            "DASD is more accurate than GRPO alone on fresh problems",
            1,
            versus(dasd, grpo, "in_domain", "accuracy"),
        ),
        (
            "DASD generalises",
            DASD,
            "DASD is more accurate than the uniform pull on longer chains",
            1,
            versus(dasd, pull, "longer", "accuracy"),
        ),
    ]
