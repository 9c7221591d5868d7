"""What the lab's teacher sees besides the problem, and how a trace looks that makes use of it.

The same names as in `sdkernels.contexts`, over the lab's tokens: text prompts and chat templates
have no meaning for a model of 28 words. Poorest first.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sdkernels.lab.problems import Problem
from sdkernels.lab.traces import Worked, clean, parse, render, write, write_step
from sdkernels.lab.vocabulary import two_digits

# Who sees the right values copies them. A slip is noticed against what is shown, and corrected
# without deriving anything.
COPY_SLIP = 0.04
COPY_NOTICE = 0.98

# From (problem, words of the student's own response) to the words of the context. None: no signal.
Build = Callable[[Problem, Sequence[str]], "list[str] | None"]
# From (random numbers, problem) to context and the steps of a trace that uses it.
Show = Callable[[random.Random, Problem], "tuple[list[str], list[Worked]]"]


@dataclass(frozen=True)
class LabContext:
    """A context: `build` for the teacher's prompt, `show` for the base model's training data.

    `reads_response`: whether `build` looks at the response.
    """

    name: str
    summary: str
    build: Build
    show: Show
    reads_response: bool = False


def _none(_problem: Problem, _response: Sequence[str]) -> list[str]:
    return []


def _show_none(rng: random.Random, problem: Problem) -> tuple[list[str], list[Worked]]:
    return [], write(rng, problem)


def _hint(problem: Problem, _response: Sequence[str]) -> list[str]:
    return ["hint", *(str(number) for number in problem.traps)]


def _show_hint(rng: random.Random, problem: Problem) -> tuple[list[str], list[Worked]]:
    """Waits where the hint says so, seldom elsewhere; guesses are as noisy as ever."""
    worked: list[Worked] = []
    value = problem.start
    for number, step in enumerate(problem.steps, 1):
        wait = rng.random() < (0.97 if number in problem.traps else 0.02)
        worked.append(write_step(rng, step, value, wait=wait))
        value = worked[-1].result
    return _hint(problem, ()), worked


def _final_answer(problem: Problem, _response: Sequence[str]) -> list[str]:
    return ["target", *two_digits(problem.answer)]


def _show_final_answer(rng: random.Random, problem: Problem) -> tuple[list[str], list[Worked]]:
    """As unaided until the last step, whose result is copied even if an earlier one was wrong."""
    worked = write(rng, problem)[:-1]
    last = Worked(problem.steps[-1], problem.answer, False, problem.answer)
    return _final_answer(problem, ()), [*worked, last]


def _critique(problem: Problem, response: Sequence[str]) -> list[str] | None:
    """The response's own steps, wrong ones corrected in place; None where it has no steps.

    Right steps are copied as they are, waits included. A wrong step gets the right result, and so
    does every later one, because it starts from another value; where the student waited, the check
    stays, made from the right value.
    """
    worked, _ = parse(problem, response)
    if not worked:
        return None
    return ["critique", *render(correct(problem, worked))]


def correct(problem: Problem, worked: Sequence[Worked]) -> list[Worked]:
    """The steps with wrong ones corrected, and the missing ones added from the solution."""
    corrected = clean(problem)
    given = problem.start  # the value that the student's own step started from
    for at, own in enumerate(worked):
        value, right = problem.values[at], problem.values[at + 1]
        if given == value and own.result == right:
            corrected[at] = own
        elif own.waited:
            corrected[at] = Worked(own.step, right, True, right, tuple(own.step.check(value)))
        given = own.result
    return corrected


def _show_critique(rng: random.Random, problem: Problem) -> tuple[list[str], list[Worked]]:
    """A critique of an unaided trace, and that critique copied."""
    corrected = correct(problem, write(rng, problem))
    return ["critique", *render(corrected)], _copied(rng, corrected)


def _solution(problem: Problem, _response: Sequence[str]) -> list[str]:
    return ["solution", *render(clean(problem))]


def _show_solution(rng: random.Random, problem: Problem) -> tuple[list[str], list[Worked]]:
    return _solution(problem, ()), _copied(rng, clean(problem))


def _copied(rng: random.Random, shown: Sequence[Worked]) -> list[Worked]:
    """The steps shown, copied; at times a slip, which is corrected from what is shown."""
    worked = []
    for own in shown:
        if not own.waited and rng.random() < COPY_SLIP:
            wrong = (own.result + rng.randrange(1, 100)) % 100
            noticed = rng.random() < COPY_NOTICE
            own = Worked(own.step, wrong, noticed, own.result if noticed else wrong)
        worked.append(own)
    return worked


CONTEXTS = {
    context.name: context
    for context in (
        LabContext("none", "nothing: teacher and student agree", _none, _show_none),
        LabContext("hint", "which steps need care, no values", _hint, _show_hint),
        LabContext("final_answer", "the last value", _final_answer, _show_final_answer),
        LabContext(
            "step_critique",
            "the student's own steps, wrong ones corrected, right ones word for word",
            _critique,
            _show_critique,
            reads_response=True,
        ),
        LabContext("solution", "every value, without guesses and waits", _solution, _show_solution),
    )
}
