"""Finding final answers, and reading numbers without evaluating anything."""

import time
from fractions import Fraction

import pytest

from sdkernels.train.answers import (
    extract_answer,
    parse_factors,
    parse_fraction,
    parse_hex,
    parse_number,
    plain_text,
    same_number,
)

F = Fraction


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("Answer: 5", "5"),
        ("answer : 5", "5"),
        ("**Answer:** 5", "5"),
        ("**Final Answer**: 5 legs", "5 legs"),
        ("Answer: 5\nNo: Answer: 6", "6"),
        ("Answer: 5\n" * 1000 + "Answer: 6", "6"),
        ("Answer:\n\n  5\nbye", "5"),
        ("Answer: <5>", "5"),
        ("Answer: $\\boxed{5}$", "5"),
        ("\\boxed{4} but Answer: 5", "5"),
        ("so \\boxed{\\frac{1}{2}} it is", "\\frac{1}{2}"),
        ("\\boxed{1} \\boxed{2}", "2"),
        ("The answer is 5.", "5"),
        ("The answer is \\boxed{7}", "7"),
        ("first 4, then 5 apples", "5"),
        ("Answer：5", "5"),
    ],
)
def test_where_the_answer_is_looked_for(text: str, value: str) -> None:
    found = extract_answer(text, numeric=True)
    assert found is not None
    assert found.value == value


@pytest.mark.parametrize("text", ["", "no number", "\\boxed{never closed", "answers: none"])
def test_no_answer(text: str) -> None:
    assert extract_answer(text, numeric=True) is None


def test_the_last_number_counts_for_numbers_only() -> None:
    assert extract_answer("it makes 5", numeric=False) is None
    found = extract_answer("it makes -1,234.5!", numeric=True)
    assert found is not None
    assert found == ("-1,234.5", "the last number")


def test_an_empty_answer_line_is_empty_not_the_last_number() -> None:
    found = extract_answer("5 and 6\nAnswer: ", numeric=True)
    assert found is not None
    assert found.value == ""


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", F(42)),
        ("-42", F(-42)),
        ("−42", F(-42)),
        ("+3", F(3)),
        ("- 7", F(-7)),
        ("1,234,567.5", F(2469135, 2)),
        ("1{,}234", F(1234)),
        ("12\u202f345", F(12345)),
        ("007", F(7)),
        (".5", F(1, 2)),
        ("7.", F(7)),
        ("7.0", F(7)),
        ("1e5", F(100000)),
        ("2.5E-3", F(1, 400)),
        ("3/4", F(3, 4)),
        ("-3 / 4", F(-3, 4)),
        ("1 3/4", F(7, 4)),
        ("-1 3/4", F(-7, 4)),
        ("\\frac{3}{4}", F(3, 4)),
        ("-\\dfrac{3}{4}", F(-3, 4)),
        ("\\frac34", F(3, 4)),
        ("$5", F(5)),
        ("\\$5.50", F(11, 2)),
        ("-$5", F(-5)),
        ("€ 5", F(5)),
        ("5 dollars", F(5)),
        ("72 km/h", F(72)),
        ("5m", F(5)),
        ("5 \\text{ cm}", F(5)),
        ("**5**", F(5)),
        ("`5`", F(5)),
        ("There are 292 legs.", F(292)),
        ("x = 5", F(5)),
        ("2 + 3 = 5", F(5)),
        ("٤٢", F(42)),
        ("４２", F(42)),
        ("50%", F(50)),
        ("50\\%", F(50)),
    ],
)
def test_parse_number(text: str, value: Fraction) -> None:
    number = parse_number(text)
    assert number is not None
    assert number.value == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "none",
        "nan",
        "inf",
        "-Infinity",
        "1/0",
        "4 or 5",
        "not 5",
        "isn't 5",
        "5x",
        "5i",
        "5²",
        "²",
        "2^3",
        "9**9**9**9",
        "9^9^9^9",
        "10 - 3",
        "3 * 4",
        "1,23",
        "1,234,56",
        "1.2.3",
        "12 345",
        "(1, 2)",
        "0x1f",
        "1e999999999",
        "1" * 401,
        "9" * 5000,
        "1/" + "9" * 4000,
        "__import__('os').system('true') or 5**2",
        "x" * 2000 + "5",
    ],
)
def test_what_is_no_number(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("5", "5", True),
        ("5.0", "5", True),
        ("5.0000001", "5", False),
        ("793546073", "793546072", False),
        ("10/2", "5", True),
        ("1/3", "2/6", True),
        ("0.3333", "1/3", False),
        ("1/3", "0.3333", True),
        ("1/3", "0.33", False),
        ("0.33331", "0.3333", True),
        ("0.3334", "0.3333", False),
        ("9.48", "9.5", False),
        ("72.04", "72.0", False),
        ("1000000.1", "1000000.2", True),
        ("50%", "50", True),
        ("50%", "0.5", True),
        ("0.5", "50%", True),
        ("5%", "50%", False),
        ("50%", "5000", False),
        ("-5", "5", False),
    ],
)
def test_same_number(answer: str, reference: str, *, same: bool) -> None:
    ours, theirs = parse_number(answer), parse_number(reference)
    assert ours is not None
    assert theirs is not None
    assert same_number(ours, theirs) is same


@pytest.mark.parametrize(
    ("text", "pair"),
    [
        ("2/4", (2, 4)),
        ("-1 / 2", (-1, 2)),
        ("$\\frac{138}{583}$", (138, 583)),
        ("3", (3, 1)),
        ("0.5", None),
        ("1/2/3", None),
        ("1/x", None),
    ],
)
def test_parse_fraction(text: str, pair: tuple[int, int] | None) -> None:
    assert parse_fraction(text) == pair


def test_parse_hex_and_factors() -> None:
    assert parse_hex("-0x3F.") == -63
    assert parse_hex("0xzz") is None
    assert parse_hex("63") is None
    assert parse_factors("3 × 2 * 2") == [2, 2, 3]
    assert parse_factors("139") == [139]
    assert parse_factors("2 × (3)") is None


def test_plain_text() -> None:
    assert plain_text('  "Hello,  World." ') == "hello, world"
    assert plain_text("\\text{Monday}") == "monday"
    assert plain_text("ﬁn") == "fin"


@pytest.mark.parametrize(
    "text",
    [
        "Answer: " * 1_500_000,
        "answer is " * 1_000_000,
        "\\boxed{" * 1_500_000,
        "{" * 10_000_000,
        "1," * 5_000_000,
        "1 " * 5_000_000,
        "9" * 10_000_000,
        "Answer:" + " " * 10_000_000,
        "answer" + "*" * 10_000_000,
    ],
    ids=lambda text: repr(text[:12]),
)
def test_ten_megabytes_are_no_problem(text: str) -> None:
    start = time.perf_counter()
    found = extract_answer(text, numeric=True)
    assert found is None or len(found.value) <= 1000
    if found is not None:
        parse_number(found.value)
    assert time.perf_counter() - start < 2
