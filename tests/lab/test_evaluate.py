from typing import Any

import pytest
from helpers.lab_evaluator import words

from sdkernels.lab.evaluate import (
    evaluate,
    grade,
    measure,
    problem_sets,
    room,
)
from sdkernels.lab.problems import FAMILIES, MAX_STEPS, Problem, Step
from sdkernels.lab.sample import Sampled
from sdkernels.lab.traces import Worked, finish
from sdkernels.lab.vocabulary import END, WAIT, encode

PROBLEM = Problem("mixed", 47, (Step("+", 36), Step("*", 7)))
CHECK = "7 + 6 = 1 3 , 4 + 3 + 1 = 8"
RESCUED = f"+ 3 6 = 7 3 wait {CHECK} so 8 3 ; * 7 = 8 1 ; answer 8 1"
UNNOTICED = "+ 3 6 = 7 3 ; * 7 = 1 1 ; answer 1 1"
DOUBTED = f"+ 3 6 = 8 3 wait {CHECK} so 8 3 ; * 7 = 8 1 ; answer 8 1"
BROKEN = "+ 3 6 = 8 3 ; ; answer"


def response(text: str, *, truncated: bool = False, entropy: float = 0.5) -> Sampled:
    ids = [*encode(text.split()), *([] if truncated else [END])]
    return Sampled(ids, [entropy] * len(ids))


def test_a_wrong_step_is_one_that_is_wrong_for_its_own_start() -> None:
    graded = grade(PROBLEM, response(UNNOTICED))
    assert graded.given() == [47, 73]
    assert graded.right_steps() == [False, True]
    assert not graded.correct


def test_measures_by_hand() -> None:
    texts = (RESCUED, UNNOTICED, DOUBTED, BROKEN)
    found = measure([grade(PROBLEM, response(text)) for text in texts], samples=2)
    assert found["problems"]["accuracy"] == [0.5, 0.5]
    assert found["accuracy"] == 0.5
    assert found["pass_at_k"] == 1.0
    # Two steps asked in each of four responses: 2 + 1 + 2 + 1 are there and right.
    assert found["step_accuracy"] == pytest.approx(6 / 8)
    assert found["problems"]["step_accuracy"] == [3 / 4, 3 / 4]
    assert found["waits"] == 0.5
    assert found["guess_accuracy"] == pytest.approx(5 / 7)
    assert found["noticed"] == 1 / 2
    assert found["doubted"] == 1 / 5
    assert found["rescued"] == 1.0
    assert found["well_formed"] == 3 / 4
    assert found["entropy"] == 0.5
    lengths = [len(response(text).ids) for text in texts]
    assert found["length"] == sum(lengths) / 4
    assert found["waits_per_100_tokens"] == pytest.approx(100 * 2 / sum(lengths))


def test_a_truncated_response_has_no_answer() -> None:
    graded = grade(PROBLEM, response(RESCUED, truncated=True))
    assert not graded.correct
    assert len(graded.worked) == 2
    assert measure([graded], 1)["truncated"] == 1.0


def test_shares_of_nothing_are_none() -> None:
    found = measure([grade(PROBLEM, response("answer"))], 1)
    for name in ("guess_accuracy", "noticed", "doubted", "rescued"):
        assert found[name] is None
    assert found["step_accuracy"] == 0.0


def test_there_is_room_for_the_longest_response() -> None:
    step = Step("*", 9)
    for length in range(1, MAX_STEPS + 1):
        problem = Problem("product", 99, (step,) * length)
        worked = [
            Worked(step, 11, True, value, tuple(step.check(before)))
            for before, value in zip(problem.values, problem.values[1:], strict=False)
        ]
        assert room([problem]) == len([*finish(worked), "<end>"])


def test_evaluation_repeats_and_bans(blank_model: Any) -> None:
    first = evaluate(blank_model, [PROBLEM], samples=3, seed=1)
    assert first == evaluate(blank_model, [PROBLEM], samples=3, seed=1)
    assert first["waits"] > 0
    assert evaluate(blank_model, [PROBLEM], samples=3, seed=1, banned=[WAIT])["waits"] == 0


def test_a_context_reaches_the_prompt(tiny_model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import sdkernels.lab.evaluate as module

    seen = []

    def spy(model: Any, prompts: Any, **settings: Any) -> list[Sampled]:
        seen.append(prompts)
        return [response(UNNOTICED) for _ in prompts]

    monkeypatch.setattr(module, "sample", spy)
    evaluate(tiny_model, [PROBLEM], samples=2, seed=0, context="final_answer")
    assert seen == [[encode([*PROBLEM.prompt(["target", "8", "1"])])] * 2]
    evaluate(tiny_model, [PROBLEM], samples=1, seed=0, context="step_critique")
    assert seen[1] == [encode(PROBLEM.prompt())]
    critique = words("critique + 3 6 = 8 3 ; * 7 = 8 1")
    assert seen[2] == [encode(PROBLEM.prompt(critique))]


def test_problem_sets_are_what_their_names_say() -> None:
    settings: dict[str, Any] = {"lengths": (2,), "long_lengths": (4,), "size": 20, "seed": 0}
    sets = problem_sets(("sum",), ("digits", "mixed"), **settings)
    families = {one.name: {problem.family for problem in one.problems} for one in sets}
    assert families == {"in_domain": {"sum"}, "longer": {"sum"}, "other": {"digits", "mixed"}}
    lengths = {one.name: {len(problem.steps) for problem in one.problems} for one in sets}
    assert lengths == {"in_domain": {2}, "longer": {4}, "other": {2}}
    assert sets == problem_sets(("sum",), ("digits", "mixed"), **settings)
    assert set(FAMILIES) == {"sum", "product", "digits", "mixed"}
