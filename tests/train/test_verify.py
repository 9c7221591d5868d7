"""Verdicts per kind of task, hostile responses, and feedback that does not leak the answer."""

import time
from pathlib import Path
from typing import Any

import pytest

from sdkernels.contexts import Example
from sdkernels.train import verify as module
from sdkernels.train.verify import GYM_TASKS, kind_of, read_answer, verify, vote_key


def example(answer: str | None, task: str = "", **metadata: Any) -> Example:
    prompt = [{"role": "user", "content": "q"}]
    return Example(id="x", prompt=prompt, answer=answer, task=task, metadata=metadata)


@pytest.mark.parametrize(
    ("text", "answer", "task", "correct"),
    [
        ("Answer: 1,000", "1000", "number", True),
        ("Answer: 1,000", "1001", "number", False),
        ("it is 12 apples", "12", "number", True),
        ("Answer: <think>5</think> 6", "6", "number", True),
        ("<think>Answer: 6</think>Answer: 5", "6", "number", False),
        ("thoughts Answer: 6</think>\nAnswer: 5", "5", "number", True),
        ("Answer: \\frac{1}{2}", "0.5", "math", True),
        ("\\boxed{x^2+2x}", "x(x+2)", "math", True),
        ("Answer: x^2+2", "x(x+2)", "math", False),
        ("Answer: $\\text{odd}$", "\\text{odd}", "math", True),
        ("Answer: the  MONDAY.", "The Monday", "string", True),
        ("Answer: Monday or Tuesday", "Monday", "string", False),
        ("Answer: (B) because", "B", "choice", True),
        ("Answer: b", "B", "choice", True),
        ("\\boxed{\\text{B}}", "B", "choice", True),
        ("Answer: $B$", "B", "choice", True),
        ("Answer: b) Paris", "B", "choice", True),
        ("Answer: a cat", "A", "choice", False),
        ("Answer: Because", "B", "choice", False),
        ("\\boxed{C}", "B", "choice", False),
        ("Answer: 2/4", "1/2", "reasoning_gym/fraction_simplification", False),
        ("Answer: 1/2", "$\\frac{1}{2}$", "reasoning_gym/fraction_simplification", True),
        ("Answer: 3 × 2 × 2", "2 × 2 × 3", "reasoning_gym/prime_factorization", True),
        ("Answer: 12", "2 × 2 × 3", "reasoning_gym/prime_factorization", False),
        ("Answer: 0X1F", "0x1f", "reasoning_gym/bitwise_arithmetic", True),
        ("Answer: b,a", "a, b", "reasoning_gym/word_sorting", False),
        ("Answer: a,b.", "a, b", "reasoning_gym/word_sorting", True),
        ("Answer: friday", "Friday", "reasoning_gym/calendar_arithmetic", True),
        ("Answer: 12", "12", "reasoning_gym/calendar_arithmetic", True),
        ("Answer: n\u0456ne", "nine", "string", False),
    ],
)
def test_verdict(text: str, answer: str, task: str, *, correct: bool) -> None:
    verdict = verify(text, example(answer, task), time_limit_seconds=20)
    assert verdict.correct is correct
    assert verdict.reward == float(correct)


@pytest.mark.parametrize(
    ("answer", "kind"),
    [
        ("12", "number"),
        ("$1,200.50", "number"),
        ("-3/4", "number"),
        ("\\frac{3}{4}", "number"),
        ("5 apples", "number"),
        ("Apollo 11", "math"),
        ("B", "choice"),
        ("K", "string"),
        ("x+1", "math"),
        ("(1, 2)", "math"),
        ("\\sqrt{2}", "math"),
        ("Monday", "string"),
    ],
)
def test_the_kind_is_inferred_from_the_answer(answer: str, kind: str) -> None:
    assert kind_of(example(answer)) == kind


def test_text_with_digits_is_still_compared_as_text() -> None:
    assert verify("Answer: Apollo 11", example("Apollo 11")).correct


@pytest.mark.parametrize(
    "text",
    [
        "",
        "   ",
        "Answer:",
        "Answer: nan",
        "Answer: inf",
        "Answer: 9**9**9**9",
        "Answer: 1e999999999",
        "Answer: " + "9" * 100_000,
        "Answer: 6²",
        "Answer: 6 or 7",
        "Answer: <value>",
        "Answer: 36 or 37\nAnswer:",
        "Answer: not 36",
        "\\boxed{",
        "Answer: \x00\ufffd",
        "A" * 10_000_000,
        "Answer: 37\n" * 900_000,
        "<think>" * 1_000_000 + "Answer: 36",
    ],
    ids=lambda text: repr(text[:16]),
)
def test_hostile_responses_get_no_reward_quickly(text: str) -> None:
    start = time.perf_counter()
    verdict = verify(text, example("36", "number"))
    assert not verdict.correct
    assert verdict.reward == 0.0
    assert len(verdict.feedback) < 300
    assert time.perf_counter() - start < 3


def test_code_is_not_executed(tmp_path: Path) -> None:
    target = tmp_path / "written"
    attack = f"__import__('pathlib').Path('{target}').touch()"
    answers = {"number": "5", "math": "x+1", "string": "abc", "choice": "B"}
    answers |= {f"reasoning_gym/{task}": "5" for task in GYM_TASKS}
    special = {"prime_factorization": "5", "bitwise_arithmetic": "0x5", "dice": "1/5"}
    for task, answer in answers.items():
        answer = special.get(task.removeprefix("reasoning_gym/"), answer)
        for text in (f"Answer: {attack}", f"\\boxed{{{attack}}}", f"Answer: [{attack}]"):
            assert not verify(text, example(answer, task), time_limit_seconds=20).correct
    assert not target.exists()


def test_a_slow_comparison_costs_the_reward_and_is_named() -> None:
    verdict = verify("Answer: 9^{9^{9^{9}}}", example("\\pi", "math"), time_limit_seconds=0.5)
    assert verdict.reward == 0.0
    assert "longer than the time limit of 0.5 s" in verdict.feedback
    assert verify("Answer: \\pi/1", example("\\pi", "math"), time_limit_seconds=20).correct


@pytest.mark.parametrize(
    ("text", "answer", "task", "parts"),
    [
        ("Answer: 43", "29", "number", ["`Answer:` line", "`43`", "not correct"]),
        ("\\boxed{43}", "29", "number", ["\\boxed{}", "`43`"]),
        ("we get 43", "29", "number", ["the last number", "`43`"]),
        ("Answer: 4 or 5", "29", "number", ["does not state one number"]),
        ("hello", "29", "number", ["No final answer was found", "`Answer: <value>`"]),
        ("<think>29", "29", "number", ["ended before its thinking did"]),
        ("Answer: 2/4", "1/2", "reasoning_gym/dice", ["not in lowest terms"]),
        ("Answer: x", "1/2", "reasoning_gym/dice", ["not a fraction"]),
        ("Answer: hello", "B", "choice", ["not the letter of an option"]),
        ("Answer: x", "0x1f", "reasoning_gym/bitwise_arithmetic", ["not a hexadecimal number"]),
        ("Answer: a b", "2 × 3", "reasoning_gym/prime_factorization", ["prime factors"]),
        ("Answer: \\frac{", "\\pi", "math", ["can't be read as a mathematical expression"]),
    ],
)
def test_feedback_says_what_was_read_and_never_the_answer(
    text: str, answer: str, task: str, parts: list[str]
) -> None:
    verdict = verify(text, example(answer, task), time_limit_seconds=20)
    assert not verdict.correct
    for part in parts:
        assert part in verdict.feedback
    assert answer not in verdict.feedback.replace(text, "")


def test_feedback_on_a_correct_response_does_not_repeat_the_answer() -> None:
    assert "29" not in verify("Answer: 29", example("29")).feedback


def test_the_extracted_answer_is_reported() -> None:
    assert verify("Answer: **43**", example("29")).extracted == "43"
    assert verify("nothing", example("29")).extracted is None


@pytest.mark.parametrize(
    ("task", "answer", "message"),
    [
        ("number", None, r"data.jsonl, line 3: can't be verified, because it has no `answer`"),
        ("number", "  ", "it has no `answer`"),
        ("strings", "5", r"no verifier for task 'strings'\. Did you mean 'string'"),
        ("reasoning_gym/n_queens", "5", "no verifier for task 'reasoning_gym/n_queens'"),
        ("number", "Monday", r"line 3: the reference answer 'Monday' is no number, which task"),
        ("reasoning_gym/dice", "x", "is no fraction"),
    ],
)
def test_an_example_that_cannot_be_verified(task: str, answer: str | None, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        verify("Answer: 5", example(answer, task, row="data.jsonl, line 3"))


@pytest.mark.parametrize(
    ("answer", "task", "alike", "other"),
    [
        ("1/2", "number", ["0.5", "2/4", "$\\frac{1}{2}$", ".50"], "50%"),
        ("x+1", "math", ["X + 1"], "1 + x"),
        ("B", "choice", ["(b)", "B) Paris", "B."], "C"),
        ("Paris", "string", ["paris.", " PARIS "], "Rome"),
    ],
)
def test_equal_answers_vote_together(answer: str, task: str, alike: list[str], other: str) -> None:
    problem = example(answer, task)
    assert {vote_key(text, problem) for text in alike} == {vote_key(alike[0], problem)}
    assert vote_key(other, problem) not in (None, vote_key(alike[0], problem))
    assert vote_key(None, problem) is None


def test_no_task_is_in_two_kinds_and_all_exist_upstream() -> None:
    from reasoning_gym.factory import DATASETS

    listed = [name for tasks in module.GYM_KINDS.values() for name in tasks.split()]
    assert len(listed) == len(set(listed))
    assert set(listed) == GYM_TASKS <= set(DATASETS)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>Answer: 3</think>Answer: 4", "4"),
        (r"so \boxed{x + 1}", "x + 1"),
        ("about 12 apples", "12"),
        ("<think>Answer: 3", None),
        ("no idea", None),
        ("Answer:", None),
    ],
)
def test_an_answer_is_read_without_a_reference_too(text: str, answer: str | None) -> None:
    assert read_answer(text) == answer
