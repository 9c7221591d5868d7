"""Traces: how a problem is worked through, as written by the lab's author and read back again.

A step is `op operand = guess`, then, where the writer is unsure, `wait`, a check, and `so result`.
Guesses are noisy where there is a trap, and not every wrong one is noticed: what follows is then
computed from the wrong value. A model trained on such traces is imperfect, and its waits help.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from sdkernels.lab.problems import Problem, Step
from sdkernels.lab.vocabulary import two_digits


@dataclass(frozen=True)
class Habits:
    """Probabilities of the writer, by what it knows.

    Attributes:
        slip: a wrong guess, at a trapped step and elsewhere.
        notice: a `wait` after a wrong guess.
        doubt: a `wait` after a right guess, at a trapped step and elsewhere.
    """

    slip: tuple[float, float] = (0.4, 0.05)
    notice: float = 0.75
    doubt: tuple[float, float] = (0.35, 0.03)


UNAIDED = Habits()


@dataclass(frozen=True)
class Worked:
    """One step as a trace has it: the guess, whether `wait` follows, the result that goes on.

    `check` holds the words between `wait` and `so`, empty without a check.
    """

    step: Step
    guess: int
    waited: bool
    result: int
    check: tuple[str, ...] = ()

    def words(self) -> list[str]:
        """The step as it stands in a trace."""
        head = [*self.step.words(), "=", *two_digits(self.guess)]
        if not self.waited:
            return head
        return [*head, "wait", *self.check, "so", *two_digits(self.result)]


def render(worked: Sequence[Worked]) -> list[str]:
    """The words of the steps, separated by `;`."""
    words: list[str] = []
    for step in worked:
        words += [*([";"] if words else []), *step.words()]
    return words


def finish(worked: Sequence[Worked]) -> list[str]:
    """A whole response: the steps and the answer that follows from them."""
    return [*render(worked), ";", "answer", *two_digits(worked[-1].result)]


def clean(problem: Problem) -> list[Worked]:
    """The solution without a guess that is wrong and without a `wait`."""
    pairs = zip(problem.steps, problem.values[1:], strict=True)
    return [Worked(step, value, False, value) for step, value in pairs]


def write_step(
    rng: random.Random,
    step: Step,
    value: int,
    habits: Habits = UNAIDED,
    *,
    wait: bool | None = None,
) -> Worked:
    """One step from `value` by a writer with these habits; `wait` overrides its doubts."""
    right, trapped = step.apply(value), step.trapped(value)
    guess = right
    if rng.random() < habits.slip[0 if trapped else 1]:
        guess = wrong_guess(rng, step, value)
    alarm = habits.notice if guess != right else habits.doubt[0 if trapped else 1]
    waited = rng.random() < alarm if wait is None else wait
    if not waited:
        return Worked(step, guess, False, guess)
    return Worked(step, guess, True, right, tuple(step.check(value)))


def write(rng: random.Random, problem: Problem, habits: Habits = UNAIDED) -> list[Worked]:
    """A trace of the problem by a writer with these habits."""
    worked: list[Worked] = []
    value = problem.start
    for step in problem.steps:
        worked.append(write_step(rng, step, value, habits))
        value = worked[-1].result
    return worked


def wrong_guess(rng: random.Random, step: Step, value: int) -> int:
    """A wrong result: mostly the carry forgotten, else one digit off."""
    right, forgetful = step.apply(value), step.forgetful(value)
    if forgetful != right and rng.random() < 0.7:
        return forgetful
    other = rng.randrange(1, 10)
    if rng.random() < 0.7:
        return (right + 10 * other) % 100
    return right // 10 * 10 + (right + other) % 10


def parse(problem: Problem, words: Sequence[str]) -> tuple[list[Worked], int | None]:
    """The steps of a response as far as they have the form of a trace, and its answer.

    The answer is None unless all steps are there and `answer` with two digits ends the response.
    """
    worked: list[Worked] = []
    rest = list(words)
    for step in problem.steps:
        head = [*step.words(), "="]
        if rest[: len(head)] != head:
            return worked, None
        found = _read_step(step, rest[len(head) :])
        if found is None:
            return worked, None
        parsed, rest = found
        worked.append(parsed)
        if not rest or rest.pop(0) != ";":
            return worked, None
    if len(rest) == 3 and rest[0] == "answer":
        return worked, _number(rest[1:])
    return worked, None


def _read_step(step: Step, rest: list[str]) -> tuple[Worked, list[str]] | None:
    guess, rest = _number(rest[:2]), rest[2:]
    if guess is None:
        return None
    if rest[:1] != ["wait"]:
        return Worked(step, guess, False, guess), rest
    until = rest.index(";") if ";" in rest else len(rest)
    if "so" not in rest[:until]:
        return None
    so = rest.index("so")
    result = _number(rest[so + 1 : so + 3])
    if result is None:
        return None
    return Worked(step, guess, True, result, tuple(rest[1:so])), rest[so + 3 :]


def _number(words: Sequence[str]) -> int | None:
    if len(words) == 2 and all(len(word) == 1 and word.isdecimal() for word in words):
        return 10 * int(words[0]) + int(words[1])
    return None
