"""Two answers compared by value. What a number is: see `tests/train/test_answers.py`."""

import pytest

from sdkernels.contexts.numbers import agree, same_answer


@pytest.mark.parametrize(
    ("answer", "reference", "same"),
    [
        ("2.10", "2.1", True),
        ("2.2", "2.1", False),
        ("blue", "blue", True),
        ("blue", "Blue", False),
        ("5", "five", False),
        ("x = 5.0", "5", True),
        ("50%", "0.5", True),
        (r"\frac{1}{2}", "0.5", True),
        ("3.14159266", "3.14159265", True),  # the tolerance of a decimal reference
        ("3.2", "3.14159265", False),
    ],
)
def test_the_same_text_or_the_same_number(answer: str, reference: str, same: bool) -> None:
    assert same_answer(answer, reference) == same


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("29.0", "$29$", True),
        ("1/3", "0.333", True),  # as the verifier has it with the decimal as reference
        ("1/3", "0.33", False),
        ("1 3/4", "13/4", False),
        ("Dark  blue", "darkblue", True),
        ("5", "five", False),
    ],
)
def test_two_answers_without_a_reference(first: str, second: str, same: bool) -> None:
    assert agree(first, second) == agree(second, first) == same
