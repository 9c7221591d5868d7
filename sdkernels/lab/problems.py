"""Problems of the lab: a two-digit number and a chain of operations on it, in four task families.

Each operation maps 0..99 to 0..99 and has a check, a derivation in pieces that a small model can
learn as tables of a hundred entries. A step is `trapped` where a carry or borrow makes the answer
hard to give at once; traps are where a tentative answer is likely to be wrong.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from sdkernels.lab.vocabulary import two_digits

# name -> operators of the family; a problem of the family uses these only.
FAMILIES = {
    "sum": "+-",
    "product": "*",
    "digits": "@",
    "mixed": "+-*@",
}
MAX_STEPS = 6


@dataclass(frozen=True)
class Step:
    """One operation: `+` and `-` take 0..99, `*` and `@` a digit from 2 to 9."""

    operator: str
    operand: int

    def words(self) -> list[str]:
        """Operator and operand as they stand in problems and traces."""
        number = two_digits(self.operand) if self.operator in "+-" else [str(self.operand)]
        return [self.operator, *number]

    def apply(self, value: int) -> int:
        """The result, from 0 to 99.

        `+`, `-` and `*` are taken modulo 100; `@` multiplies the last digit and adds the first.
        """
        if self.operator == "+":
            return (value + self.operand) % 100
        if self.operator == "-":
            return (value - self.operand) % 100
        if self.operator == "*":
            return value * self.operand % 100
        return value % 10 * self.operand + value // 10

    def trapped(self, value: int) -> bool:
        """Whether this step needs a carry or a borrow."""
        if self.operator == "+":
            return value % 10 + self.operand % 10 >= 10
        if self.operator == "-":
            return value % 10 < self.operand % 10
        return value % 10 * self.operand >= 10

    def forgetful(self, value: int) -> int:
        """What comes out when carry or borrow is forgotten: the typical wrong guess."""
        if self.operator in "+-":
            sign = 1 if self.operator == "+" else -1
            tens = (value // 10 + sign * (self.operand // 10)) % 10
            return 10 * tens + (value + sign * self.operand) % 10
        if self.operator == "*":
            return 10 * (value // 10 * self.operand % 10) + value * self.operand % 10
        return (value % 10 * self.operand % 10 + value // 10) % 100

    def check(self, value: int) -> list[str]:
        """The derivation in pieces, from `value`; it ends where the result follows."""
        tens, units = value // 10, value % 10
        result = self.apply(value)
        if self.operator == "+":
            low = units + self.operand % 10
            parts = f"{units} + {self.operand % 10} = {low // 10} {low % 10} , "
            parts += f"{tens} + {self.operand // 10} + {low // 10} = {result // 10}"
        elif self.operator == "-":
            borrow = int(self.trapped(value))
            parts = f"{borrow} {units} - {self.operand % 10} = {result % 10} , "
            parts += f"{tens} - {self.operand // 10} - {borrow} = {result // 10}"
        elif self.operator == "*":
            low, high = self.operand * units, self.operand * tens
            parts = f"{self.operand} * {units} = {low // 10} {low % 10} , "
            parts += f"{self.operand} * {tens} = {high // 10} {high % 10} , "
            parts += f"{low // 10} + {high % 10} = {result // 10}"
        else:
            low = self.operand * units
            parts = f"{units} * {self.operand} = {low // 10} {low % 10} , "
            parts += f"{low // 10} {low % 10} + {tens} = {result // 10} {result % 10}"
        return parts.split()


@dataclass(frozen=True)
class Problem:
    """A start value and a chain of steps; the answer is the last value."""

    family: str
    start: int
    steps: tuple[Step, ...]

    @property
    def values(self) -> list[int]:
        """The correct value before the first step and after each of them."""
        found = [self.start]
        for step in self.steps:
            found.append(step.apply(found[-1]))
        return found

    @property
    def answer(self) -> int:
        """The value after the last step."""
        return self.values[-1]

    @property
    def traps(self) -> list[int]:
        """Numbers (from 1) of the trapped steps."""
        pairs = zip(self.steps, self.values, strict=False)
        return [number for number, (step, value) in enumerate(pairs, 1) if step.trapped(value)]

    def prompt(self, context: list[str] | None = None) -> list[str]:
        """The words before the response; `context` stands between the problem and `think`."""
        words = ["solve", *two_digits(self.start)]
        for step in self.steps:
            words += [";", *step.words()]
        return [*words, *(context or []), "think"]


def draw(rng: random.Random, family: str, num_steps: int) -> Problem:
    """A random problem.

    Raises:
        ValueError: an unknown family, or a number of steps outside 1 to `MAX_STEPS`.
    """
    if family not in FAMILIES:
        raise ValueError(f"family={family!r}: expected one of {', '.join(FAMILIES)}")
    if not 1 <= num_steps <= MAX_STEPS:
        raise ValueError(f"num_steps={num_steps}: expected 1 to {MAX_STEPS}")
    steps = []
    for _ in range(num_steps):
        operator = rng.choice(FAMILIES[family])
        low, high = (0, 99) if operator in "+-" else (2, 9)
        steps.append(Step(operator, rng.randint(low, high)))
    return Problem(family, rng.randint(0, 99), tuple(steps))


def draw_distinct(
    rng: random.Random,
    families: tuple[str, ...],
    lengths: tuple[int, ...],
    count: int,
    *,
    without: frozenset[Problem] = frozenset(),
) -> list[Problem]:
    """`count` different problems, families in turn and lengths at random, none of `without`.

    Raises:
        ValueError: so many do not exist or are too hard to find.
    """
    found: dict[Problem, None] = {}
    for _ in range(100 * count + 100):
        if len(found) == count:
            return list(found)
        problem = draw(rng, families[len(found) % len(families)], rng.choice(lengths))
        if problem not in without:
            found[problem] = None
    if len(found) == count:
        return list(found)
    raise ValueError(
        f"count={count}: only {len(found)} different problems of {', '.join(families)} with "
        f"{', '.join(map(str, lengths))} steps were found; ask for fewer or for longer chains"
    )
