"""The worked solutions: every step of them true, and hints that keep the answer to themselves."""

import re
from fractions import Fraction
from typing import Any

import pytest
import reasoning_gym

from sdkernels.contexts import Example, strip_thinking
from sdkernels.train.gym_solutions import WRITERS, worked_solution
from sdkernels.train.markers import count_markers
from sdkernels.train.verify import verify

HARDER: dict[str, dict[str, Any]] = {
    "chain_sum": {"allow_negation": True, "min_terms": 1},
    "products": {"allow_negation": True, "min_terms": 1, "max_terms": 4, "max_digits": 3},
    "gcd": {"min_numbers": 2, "max_numbers": 5},
    "lcm": {"min_numbers": 2, "max_numbers": 4},
    "leg_counting": {"min_animals": 1},
    "basic_arithmetic": {"min_terms": 1},
}
CASES: list[tuple[str, dict[str, Any]]] = [*((task, {}) for task in WRITERS), *HARDER.items()]


def entries(task: str, settings: dict[str, Any], size: int = 150) -> list[dict[str, Any]]:
    return list(reasoning_gym.create_dataset(task, seed=7, size=size, **settings))


def check(text: str, entry: dict[str, Any], task: str) -> bool:
    example = Example(
        id="x", prompt=[], answer=entry["answer"], task=f"reasoning_gym/{task}", metadata={}
    )
    return verify(text, example).correct


def value(expression: str) -> Fraction:
    """Integer arithmetic by an own little parser: sums of products of signed numbers."""
    tokens = re.findall(r"\d+|[-+*/()]", expression)

    def factor() -> Fraction:
        token = tokens.pop(0)
        if token == "-":
            return -factor()
        if token == "(":
            result = total()
            assert tokens.pop(0) == ")"
            return result
        return Fraction(int(token))

    def product() -> Fraction:
        result = factor()
        while tokens and tokens[0] in "*/":
            result = result * factor() if tokens.pop(0) == "*" else result / factor()
        return result

    def total() -> Fraction:
        result = product()
        while tokens and tokens[0] in "+-":
            result = result + product() if tokens.pop(0) == "+" else result - product()
        return result

    result = total()
    assert not tokens, expression
    return result


@pytest.mark.parametrize(("task", "settings"), CASES)
def test_both_parts_end_in_the_right_answer(task: str, settings: dict[str, Any]) -> None:
    worked = 0
    for entry in entries(task, settings):
        found = worked_solution(task, entry)
        if found is None:
            continue
        worked += 1
        solution = found.solution(entry["answer"])
        clean = strip_thinking(solution)
        assert check(solution, entry, task)
        assert check(clean, entry, task)
        assert clean.startswith("Step 1: ")
        assert "<think>" not in clean
        assert sum(count_markers(solution).values()) >= 3 > sum(count_markers(clean).values())
    assert worked >= 0.9 * 150


@pytest.mark.parametrize(
    ("task", "settings"), [(t, s) for t, s in CASES if t not in ("gsm_symbolic",)]
)
def test_every_equation_in_a_solution_holds(task: str, settings: dict[str, Any]) -> None:
    equations = 0
    for entry in entries(task, settings, 60):
        found = worked_solution(task, entry)
        if found is None:
            continue
        variable = entry["metadata"].get("variable")
        for sentence in re.split(r"\.\s|,|:|\n| and ", found.solution("?")):
            sides = sentence.split("=")
            known = [s for s in sides if re.fullmatch(r"[\s\d+*/()-]*\d[\s\d+*/()-]*", s)]
            if variable and variable in sentence:
                known = known[-2:]
            if len(known) > 1:
                equations += 1
                assert len({value(side) for side in known}) == 1, sentence
    assert equations > 60


@pytest.mark.parametrize(("task", "settings"), CASES)
def test_a_hint_helps_without_the_answer(task: str, settings: dict[str, Any]) -> None:
    first_steps = 0
    for entry in entries(task, settings):
        found = worked_solution(task, entry)
        if found is None:
            continue
        hint = found.hint(entry["answer"])
        assert hint is not None
        first_steps += "First step" in hint
        numbers = re.findall(r"(?<![\w.])-?\d+(?:\.\d+)?", hint)
        assert entry["answer"] not in numbers
    assert first_steps > 30


def test_answers_that_do_not_follow_are_noticed() -> None:
    entry = {"answer": "83", "metadata": {"equation": "0 = 0", "variable": "x"}}
    assert worked_solution("simple_equations", entry) is None
    # Rounding down is not what a quotient means.
    entry = {"answer": "2", "metadata": {"expression": "7 / 3"}}
    assert worked_solution("basic_arithmetic", entry) is None
    # reasoning-gym draws a new divisor after it has written the old one down.
    broken = entries("basic_arithmetic", {"allow_parentheses": False})
    assert any(worked_solution("basic_arithmetic", entry) is None for entry in broken)


@pytest.mark.parametrize("task", sorted(set(WRITERS) - {"fraction_simplification"}))
def test_a_wrong_recorded_answer_is_refused(task: str) -> None:
    for entry in entries(task, {}, 20):
        assert worked_solution(task, {**entry, "answer": "123456789"}) is None
