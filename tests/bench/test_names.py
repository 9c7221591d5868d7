"""Names that a user types."""

import pytest

from sdkernels.bench import cases, shapes
from sdkernels.bench.names import pick


@pytest.mark.parametrize("typed", ["qwen3-8b", "Qwen3-8B", "qwen3_8b", " QWEN3_8B "])
def test_case_and_underscores_do_not_matter(typed):
    assert pick("shape", typed, shapes.SHAPES) == "qwen3-8b"


def test_a_wrong_name_gets_suggestions_and_the_list():
    with pytest.raises(ValueError, match="did you mean 'kl-student-teacher'") as raised:
        cases.get("kl-studnet-teacher")
    assert all(name in str(raised.value) for name in cases.CASES)
    with pytest.raises(ValueError, match="did you mean 'llama-3-8b'"):
        shapes.get("llama3-8b")


def test_a_hopeless_name_gets_the_list_only():
    with pytest.raises(ValueError, match=r"is not known\. Known: a, b"):
        pick("thing", "zzzzzz", ["a", "b"])
