"""Two answers compared by value. What a number is: see `tests/train/test_answers.py`."""

import pytest

from sdkernels.contexts.numbers import same_answer


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
