import random

import pytest
from helpers.lab_evaluator import faults, words

from sdkernels.lab.problems import FAMILIES, Problem, Step, draw
from sdkernels.lab.traces import Habits, Worked, clean, finish, parse, render, write, wrong_guess

PROBLEM = Problem("mixed", 47, (Step("+", 36), Step("*", 7)))
TRACE = "+ 3 6 = 7 3 wait 7 + 6 = 1 3 , 4 + 3 + 1 = 8 so 8 3 ; * 7 = 8 1 ; answer 8 1"


@pytest.mark.parametrize("family", FAMILIES)
def test_the_evaluator_finds_no_fault_in_any_trace(family: str) -> None:
    rng = random.Random(family)
    for _ in range(300):
        problem = draw(rng, family, rng.randint(1, 6))
        response = finish(write(rng, problem))
        assert faults(problem.prompt(), response) == [], " ".join(response)


def test_the_evaluator_finds_faults() -> None:
    prompt = PROBLEM.prompt()
    assert faults(prompt, TRACE.split()) == []
    for old, new in (("= 1 3", "= 1 4"), ("so 8 3", "so 7 3"), ("answer 8 1", "answer 8 2")):
        assert faults(prompt, TRACE.replace(old, new).split()), (old, new)


def test_traces_read_back() -> None:
    rng = random.Random(0)
    for _ in range(300):
        problem = draw(rng, rng.choice(list(FAMILIES)), rng.randint(1, 6))
        worked = write(rng, problem)
        assert parse(problem, finish(worked)) == (worked, worked[-1].result)
        assert parse(problem, render(worked)) == (worked, None)


def test_a_trace_by_hand() -> None:
    check = tuple(words("7 + 6 = 1 3 , 4 + 3 + 1 = 8"))
    worked = [
        Worked(Step("+", 36), 73, True, 83, check),
        Worked(Step("*", 7), 81, False, 81),
    ]
    assert parse(PROBLEM, TRACE.split()) == (worked, 81)


@pytest.mark.parametrize(
    ("response", "num_steps"),
    [
        ("", 0),
        ("+ 3 7 = 7 3 ; * 7 = 8 1 ; answer 8 1", 0),  # another operand than asked
        ("+ 3 6 = 7 wait", 0),
        ("+ 3 6 = 7 3 wait 7 + 6 ; * 7 = 8 1 ; answer 8 1", 0),  # waits without a result
        ("+ 3 6 = 8 3 ; * 7 = 8 1", 2),
        ("+ 3 6 = 8 3 ; answer 8 3", 1),  # a step left out
        ("+ 3 6 = 8 3 ; * 7 = 8 1 ; answer 8", 2),
        ("+ 3 6 = 8 3 ; * 7 = 8 1 ; answer 8 1 ;", 2),
    ],
)
def test_malformed_responses_have_no_answer(response: str, num_steps: int) -> None:
    worked, answer = parse(PROBLEM, response.split())
    assert answer is None
    assert len(worked) == num_steps


def test_a_wait_without_a_check_is_read() -> None:
    worked, answer = parse(PROBLEM, words("+ 3 6 = 7 3 wait so 8 3 ; * 7 = 8 1 ; answer 8 1"))
    assert worked[0] == Worked(Step("+", 36), 73, True, 83)
    assert answer == 81


def test_habits_are_frequencies() -> None:
    rng, habits = random.Random(0), Habits(slip=(0.4, 0.1), notice=0.7, doubt=(0.3, 0.05))
    step, counts = Step("+", 36), {}
    for value, trapped in ((47, True), (41, False)):
        problem = Problem("sum", value, (step,))
        assert step.trapped(value) is trapped
        found = [write(rng, problem, habits)[0] for _ in range(4000)]
        wrong = [one for one in found if one.guess != step.apply(value)]
        right = [one for one in found if one.guess == step.apply(value)]
        counts[trapped] = (
            len(wrong) / len(found),
            sum(one.waited for one in wrong) / len(wrong),
            sum(one.waited for one in right) / len(right),
        )
    assert counts[True] == pytest.approx((0.4, 0.7, 0.3), abs=0.04)
    assert counts[False] == pytest.approx((0.1, 0.7, 0.05), abs=0.06)


def test_wrong_guesses_are_wrong() -> None:
    rng = random.Random(0)
    for _ in range(2000):
        problem = draw(rng, "mixed", 1)
        guess = wrong_guess(rng, problem.steps[0], problem.start)
        assert guess != problem.answer
        assert 0 <= guess < 100


def test_a_clean_trace_is_right_at_once() -> None:
    assert " ".join(finish(clean(PROBLEM))) == "+ 3 6 = 8 3 ; * 7 = 8 1 ; answer 8 1"
