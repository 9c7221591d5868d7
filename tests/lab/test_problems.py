import random
from itertools import product

import pytest
from helpers.lab_evaluator import answer_of, is_true, result_of

from sdkernels.lab.problems import FAMILIES, Problem, Step, draw, draw_distinct

ALL_STEPS = [
    *(Step(operator, operand) for operator in "+-" for operand in range(100)),
    *(Step(operator, operand) for operator in "*@" for operand in range(2, 10)),
]


def test_every_step_agrees_with_the_evaluator() -> None:
    for step, value in product(ALL_STEPS, range(100)):
        assert step.apply(value) == result_of(step.operator, step.operand, value), (step, value)


def test_every_equation_of_every_check_is_true() -> None:
    for step, value in product(ALL_STEPS, range(100)):
        lines = " ".join(step.check(value)).split(" , ")
        assert all(is_true(line) for line in lines), (step, value, lines)


def test_every_check_ends_with_the_result() -> None:
    for step, value in product(ALL_STEPS, range(100)):
        words = " ".join(step.check(value)).split(" , ")
        units, last = words[0].split(" = ")[1], words[-1].split(" = ")[1].split()
        found = last if len(last) == 2 else [last[0], units.split()[-1]]
        assert int("".join(found)) == step.apply(value), (step, value, words)


def test_a_step_is_trapped_where_forgetting_the_carry_goes_wrong() -> None:
    for step, value in product(ALL_STEPS, range(100)):
        assert step.trapped(value) == (step.forgetful(value) != step.apply(value)), (step, value)
        assert 0 <= step.forgetful(value) < 100


@pytest.mark.parametrize("family", FAMILIES)
def test_prompts_read_back_to_the_answer(family: str) -> None:
    rng = random.Random(0)
    for _ in range(200):
        problem = draw(rng, family, rng.randint(1, 6))
        assert {step.operator for step in problem.steps} <= set(FAMILIES[family])
        assert answer_of(problem.prompt()) == problem.answer
        assert answer_of(problem.prompt(["hint", "1"])) == problem.answer


def test_a_prompt_by_hand() -> None:
    problem = Problem("mixed", 47, (Step("+", 36), Step("*", 7), Step("-", 5)))
    assert " ".join(problem.prompt()) == "solve 4 7 ; + 3 6 ; * 7 ; - 0 5 think"
    assert problem.values == [47, 83, 81, 76]
    assert problem.traps == [1, 2, 3]


def test_distinct_problems_differ_and_avoid_others() -> None:
    first = draw_distinct(random.Random(0), ("sum", "product"), (1, 2), 50)
    again = draw_distinct(
        random.Random(0), ("sum", "product"), (1, 2), 50, without=frozenset(first)
    )
    assert len(set(first)) == 50
    assert not set(first) & set(again)
    assert [problem.family for problem in first[:4]] == ["sum", "product", "sum", "product"]
    assert {len(problem.steps) for problem in first} == {1, 2}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda rng: draw(rng, "sums", 2), "family='sums': expected one of sum, product"),
        (lambda rng: draw(rng, "sum", 7), "num_steps=7: expected 1 to 6"),
        (
            lambda rng: draw_distinct(rng, ("product",), (1,), 801),
            "count=801: only 800 different problems of product with 1 steps",
        ),
    ],
)
def test_impossible_problems_are_refused(call, message) -> None:
    with pytest.raises(ValueError, match=message):
        call(random.Random(0))
