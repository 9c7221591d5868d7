"""Splitting responses into steps, and checking the arithmetic in them."""

from __future__ import annotations

import random
import re
import time

import pytest

from sdkernels.train.reasoning_steps import check_arithmetic, split_steps, token_steps


def steps(text):
    return [text[start:end].strip() for start, end in split_steps(text)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("First.\nSecond. Still.\n\n---\nThird", ["First.", "Second. Still.", "Third"]),
        ("Add 3. Then 4.5 is left! Done?", ["Add 3.", "Then 4.5 is left!", "Done?"]),
        ("1. Add them. 2. Stop", ["1. Add them.", "2. Stop"]),
        ("<step>a</step>\n<step n='2'>b\nc</step>", ["<step>a</step>", "<step n='2'>b\nc</step>"]),
        ("So: <STEP>a</STEP> Answer: 3", ["So:", "<STEP>a</STEP>", "Answer: 3"]),
        ("<step>cut off", ["<step>cut off"]),
        ("stepwise <stepper>", ["stepwise <stepper>"]),
        ("One.\nTwo.\n<|im_end|>", ["One.", "Two."]),
        ("", []),
        ("\n ... \n", []),
    ],
)
def test_split_steps(text, expected):
    assert steps(text) == expected


def test_tokens_fall_into_steps():
    tokens = ["\n", "Add", " 3", ".", "\n", "\n", "So", " 4", "\n"]
    found = token_steps(tokens)
    places = [(step.text, step.first, step.end) for step in found]
    assert places == [
        ("Add 3.", 0, 6),
        ("So 4", 6, 9),
    ]
    assert token_steps(["\n", " ."]) == []
    assert token_steps([]) == []


def test_a_blank_at_the_start_of_a_token_belongs_to_the_next_step():
    found = token_steps(["Done", ".", " Next", " one"])
    assert [step.text for step in found] == ["Done.", "Next one"]


def test_every_token_is_in_exactly_one_step():
    rng = random.Random(0)
    pieces = ["a", " b", "\n", ".", " ", "", "3", ". ", "\n\n", "<step>", "</step>"]
    for _ in range(200):
        tokens = [rng.choice(pieces) for _ in range(rng.randrange(1, 20))]
        found = token_steps(tokens)
        if not found:
            assert not re.search(r"\w", "".join(tokens))
            continue
        covered = [at for step in found for at in range(step.first, step.end)]
        assert covered == list(range(len(tokens)))


@pytest.mark.parametrize(
    ("step", "verdict"),
    [
        ("48 / 2 = 24 buns", True),
        ("So 48 - 20 = 28.", True),
        ("48 + 28 = 66", False),
        ("3 × 4 = 12 and 5 x 5 = 25", True),
        ("3 × 4 = 12 and 5 x 5 = 26", False),
        ("$5 * 3 = $15", True),
        ("2 + 3 = 4 + 1 = 5", True),
        ("2 + 3 = 4 + 2 = 6", False),
        ("x = 2 + 3 = 5", True),
        ("(2 + 3) * 4 = 20", True),
        ("2 + 3 * 4 = 20", False),
        ("1,200 + 300 = 1,500", True),
        ("10 / 3 = 3.33", True),
        ("10 / 3 = 3.43", False),
        ("7 / 2 = 3", False),
        ("1. 2 + 3 = 5", True),
        ("- 48 / 2 = 24", True),
        ("* 48 / 2 = 24", True),
        ("- 48 / 2 = 25", False),
        ("* 48 / 2 = 25", False),
        ("- 5 + 3 = -2", True),
        ("3 \\times 4 = 12", True),
        ("-3 + 5 = 2", True),
        ("5 − 7 = -2", True),
        # Not equations between numbers:
        ("The answer is 7", None),
        ("x + 3 = 7", None),
        ("2x + 3 = 7", None),
        ("x - 3 = 7", None),
        ("y2 + 3 = 7", None),
        ("3 + 4 = 2 x + 1", None),
        ("3 + 4 = 7x", None),
        ("n = 5", None),
        ("5 = 6", None),
        ("2 + = 5", None),
        ("1 / 0 = 3", None),
        ("100 * 20% = 20", None),
        ("2 ** 3 = 8", None),
        ("= = =", None),
        ("", None),
    ],
)
def test_check_arithmetic(step, verdict):
    assert check_arithmetic(step) is verdict


@pytest.mark.parametrize(
    "step",
    [
        "2^3 + 1 = 9",
        "2 ^ 3 * 2 = 16",
        "x^2 - 4 = 0",
        "2^10 - 1 = 1023",
        "a_2 + 3 = 7",
        "√4 + 1 = 3",
        "6 ⋅ 2 + 1 = 13",
        "7 % 4 + 1 = 4",
        "|3 + 1 = 9",
        "9:3 + 1 = 4",
        "9 : 3 + 1 = 4",
        "5! - 20 + 1 = 101",
        "10 mod 3 + 1 = 2",
        "10 \\bmod 3 + 1 = 2",
        "\\log 100 + 1 = 3",
        "log base 2 of 8 + 1 = 4",
        "half of 10 + 2 = 7",
        "10 divided by 2 + 3 = 8",
        "3 times 2 + 1 = 7",
        "sqrt 4 + 1 = 3",
        "floor 7/2 = 3",
        "gcd 6 * 2 = 3",
        "5 choose 2 + 1 = 11",
        "5 C 2 + 1 = 11",
        "17 / 5 = 3 remainder 2",
        "17 / 5 = 3, remainder 2",
        "17 / 5 = 3 with a remainder of 2",
        "17 / 5 = 3 with 2 left over",
        "17 / 5 = 3 R2",
        "17 / 5 = 3 rem 2",
        "7 + 4 = 1 mod 5",
        "7 + 4 = 1 \\pmod 5",
        "7 / 2 = 3 rounded down",
        "7 / 2 = 3½",
        "7 / 2 = 3 and 1/2",
        "4 + 4 = 2^3",
        "4 + 4 = 2 ^3",
        "4 + 4 = 2³",
        "2 * 60 = 5!",
        "2 + 4 = 2 times 3",
        "1 / 5 = 20%",
        "1 / 5 = 20 percent",
        "500 + 500 = 1 thousand",
    ],
)
def test_half_an_expression_is_no_equation(step):
    assert check_arithmetic(step) is None


@pytest.mark.parametrize(
    "step",
    [
        "2 + 3 = 6",
        "12 / 4 = 4",
        "2+3 = 5 = 6",
        "2+3 = 5 = 6 - 2",
        "2^3 = 4 + 4 = 9",
        "2 + 3 = 6 + 1 = 2^3",
        "Step 1: 2 + 3 = 6",
        "So:2 + 3 = 5. Then 2 + 3 = 6",
        "A total of 2 + 3 = 6 buns",
        "That is a 2 + 3 = 6",
        "Modern 2 + 3 = 6",
        "She gets 2 + 3 = 6 with her brother",
        "He ran 2 + 3 = 6 times",
        "2 + 3 = 6. A remainder is left",
        "2 + 3 = 6: wrong",
        "So → 2 + 3 = 6",
        "<<2+3=6>>",
        "$2 + $3 = $6",
    ],
)
def test_plain_wrong_arithmetic_is_found(step):
    assert check_arithmetic(step) is False


def test_random_equations():
    rng = random.Random(1)
    for _ in range(300):
        numbers = [rng.randrange(1, 50) for _ in range(4)]
        signs = [rng.choice("+-*") for _ in range(3)]
        text = str(numbers[0]) + "".join(
            f" {s} {n}" for s, n in zip(signs, numbers[1:], strict=True)
        )
        value = eval(text)  # ours, not a model's
        off = rng.choice((0, 0, 1, -3))
        assert check_arithmetic(f"Thus {text} = {value + off}.") is (off == 0)


@pytest.mark.parametrize("text", ["(" * 5000 + "=", "1+" * 5000 + "=1", "1 " * 9000, "= " * 9000])
def test_hostile_text_is_passed_over_fast(text):
    started = time.perf_counter()
    assert check_arithmetic(text) is None
    assert split_steps(text) is not None
    assert time.perf_counter() - started < 2
