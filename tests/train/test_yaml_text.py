"""Reading YAML: numbers, and what is refused."""

import pytest

from sdkernels.train.yaml_text import read_as_text, read_text


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 1e-3),
        ("-1E5", -1e5),
        ("1.5e3", 1500.0),
        (".5e1", 5.0),
        ("1.e+3", 1000.0),
        ("{a: 1e-3, b: [2e1]}", {"a": 1e-3, "b": [20.0]}),
        ("'1e-3'", "1e-3"),
        ('"5"', "5"),
        ("e5", "e5"),
        ("1e-3x", "1e-3x"),
        ("1e", "1e"),
        ("7", 7),
        ("true", True),
        ("", None),
        ("base: &b {x: 1}\nmine: {<<: *b, x: 2}", {"base": {"x": 1}, "mine": {"x": 2}}),
    ],
)
def test_values(text: str, value: object) -> None:
    found = read_text(text)
    assert found == value
    assert type(found) is type(value)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1", "not valid YAML: while parsing a flow sequence"),
        ("2024-13-45", "not valid YAML: month must be in 1..12"),
        ("a: 1\nb: 2\na: 3", "key 'a' stands in line 1 and again in line 3; keep one of them"),
        ("a: {x: 1, x: 1}", "key 'x' stands in line 1 and again in line 1"),
        ("!!python/object:os.system {}", "could not determine a constructor"),
    ],
)
def test_what_is_refused_gets_one_line(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as caught:
        read_text(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [("007", "007"), (" 1e3 ", "1e3"), ("'5'", "5"), ("word", "word"), ("", None), ("null", None)],
)
def test_what_is_typed_for_a_text_is_no_number(text, expected):
    assert read_as_text(text) == expected
