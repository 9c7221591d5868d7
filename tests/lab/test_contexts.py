import random

import pytest
from helpers.lab_evaluator import faults, words

from sdkernels.lab.contexts import CONTEXTS
from sdkernels.lab.problems import FAMILIES, Problem, Step, draw
from sdkernels.lab.traces import finish, parse, write

PROBLEM = Problem("mixed", 47, (Step("+", 36), Step("*", 7), Step("+", 2)))


def shown(name: str, response: str = "") -> str | None:
    words = CONTEXTS[name].build(PROBLEM, response.split())
    return None if words is None else " ".join(words)


def test_what_each_context_shows() -> None:
    assert shown("none") == ""
    assert shown("hint") == "hint 1 2"
    assert shown("final_answer") == "target 8 3"
    assert shown("solution") == "solution + 3 6 = 8 3 ; * 7 = 8 1 ; + 0 2 = 8 3"


def test_a_critique_copies_right_steps_and_corrects_wrong_ones() -> None:
    check = "7 + 6 = 1 3 , 4 + 3 + 1 = 8"
    own = f"+ 3 6 = 7 3 wait {check} so 8 3 ; * 7 = 2 1 ; + 0 2 = 2 3 ; answer 2 3"
    # The first step stays, wrong guess and check included; the second is corrected; the third
    # was right for a wrong start, and follows.
    assert shown("step_critique", own) == (
        f"critique + 3 6 = 7 3 wait {check} so 8 3 ; * 7 = 8 1 ; + 0 2 = 8 3"
    )


def test_a_critique_keeps_the_wait_of_a_step_that_it_corrects() -> None:
    own = "+ 3 6 = 7 3 wait 7 + 6 = 1 3 , 4 + 3 + 1 = 7 so 7 3 ; * 7 = 1 1"
    assert shown("step_critique", own) == (
        "critique + 3 6 = 8 3 wait 7 + 6 = 1 3 , 4 + 3 + 1 = 8 so 8 3 ; * 7 = 8 1 ; + 0 2 = 8 3"
    )


def test_a_step_that_comes_right_from_a_wrong_start_is_not_copied() -> None:
    problem = Problem("product", 25, (Step("*", 2), Step("*", 2)))
    # 2 * 0 and 2 * 50 agree modulo 100; the wait before the second result belongs to the first.
    own = words("* 2 = 0 0 ; * 2 = 1 0 wait so 0 0 ; answer 0 0")
    shown = CONTEXTS["step_critique"].build(problem, own)
    check = "2 * 0 = 0 0 , 2 * 5 = 1 0 , 0 + 0 = 0"
    assert shown == words(f"critique * 2 = 5 0 ; * 2 = 0 0 wait {check} so 0 0")


def test_a_critique_of_a_right_response_is_the_response() -> None:
    rng = random.Random(1)
    found = 0
    while found < 20:
        worked = write(rng, PROBLEM)
        if any(own.result != value for own, value in zip(worked, PROBLEM.values[1:], strict=True)):
            continue
        found += 1
        words = CONTEXTS["step_critique"].build(PROBLEM, finish(worked))
        assert words is not None
        assert words[1:] == finish(worked)[:-4]


@pytest.mark.parametrize("response", ["", "answer 8 3", "+ 3 7 = 8 3"])
def test_no_critique_of_what_has_no_step(response: str) -> None:
    assert shown("step_critique", response) is None


@pytest.mark.parametrize("name", CONTEXTS)
def test_example_traces_are_sound_and_show_what_the_teacher_will_see(name: str) -> None:
    rng = random.Random(name)
    for _ in range(150):
        problem = draw(rng, rng.choice(list(FAMILIES)), rng.randint(1, 5))
        context, worked = CONTEXTS[name].show(rng, problem)
        response = finish(worked)
        assert parse(problem, response) == (worked, worked[-1].result)
        if name in ("none", "hint"):
            assert faults(problem.prompt(context), response) == []
        if not CONTEXTS[name].reads_response:
            assert context == CONTEXTS[name].build(problem, response)


@pytest.mark.parametrize(
    ("name", "least"), [("final_answer", 1.0), ("solution", 0.99), ("step_critique", 0.99)]
)
def test_example_traces_of_rich_contexts_are_right(name: str, least: float) -> None:
    rng = random.Random(0)
    right = 0
    for _ in range(400):
        problem = draw(rng, "mixed", 3)
        right += CONTEXTS[name].show(rng, problem)[1][-1].result == problem.answer
    assert right / 400 >= least


def test_a_hint_is_followed() -> None:
    rng = random.Random(0)
    waited: dict[bool, list[bool]] = {True: [], False: []}
    for _ in range(400):
        problem = draw(rng, "mixed", 2)
        _, worked = CONTEXTS["hint"].show(rng, problem)
        for number, own in enumerate(worked, 1):
            waited[number in problem.traps].append(own.waited)
    # Where an earlier slip goes unnoticed, the hint still counts the traps of the right chain.
    assert sum(waited[True]) / len(waited[True]) > 0.93
    assert sum(waited[False]) / len(waited[False]) < 0.05


def test_a_solution_has_hardly_any_wait_and_a_critique_has_those_of_the_response() -> None:
    rng = random.Random(0)
    counts = {}
    for name in ("none", "solution", "step_critique"):
        traces = [CONTEXTS[name].show(rng, draw(rng, "product", 3))[1] for _ in range(400)]
        counts[name] = sum(own.waited for worked in traces for own in worked) / 1200
    assert counts["solution"] < 0.07
    assert counts["step_critique"] > 0.8 * counts["none"] > 0.2
