"""Checks and conversions of settings."""

from __future__ import annotations

import pytest

from sdkernels.train.settings import as_mapping, check_choice, check_kind


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a": 1, "b": [1, 2]}', {"a": 1, "b": [1, 2]}),
        ("a=1,b=x", {"a": 1, "b": "x"}),
        (" a = 1e-5 , b=false, c= ", {"a": 1e-5, "b": False, "c": None}),
        ("fixed='5'", {"fixed": "5"}),  # a setting that is text
        ("", {}),
        ({"a": 1}, {"a": 1}),
        (None, None),
    ],
)
def test_mappings(text, expected):
    assert as_mapping("x", text) == expected


def test_a_setting_of_text_stays_as_it_was_typed():
    text = "a=1e3, b= 007 ,c='5',d=,e=word"
    expected = {"a": 1000.0, "b": "007", "c": "5", "d": None, "e": "word"}
    assert as_mapping("x", text, texts={"b", "c", "d", "e"}) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "expected key=value, got 'a'"),
        ("=1", "expected key=value, got '=1'"),
        ("a=1,b", "expected key=value, got 'b'"),
        (
            "{a: 1}",
            r"not valid JSON .*: '\{a: 1\}'; expected an object .* or key=value,",
        ),
        ("a=[1", r"the value of 'a=\[1' is not valid YAML: .*; expected key=value,key=value, or a"),
        ("a=[1,2]", r"the value of 'a=\[1' is .* or a JSON object where a value has commas"),
        ("a=1,b=2,a=3", "'a' is given twice in 'a=1,b=2,a=3'; keep one"),
    ],
)
def test_mappings_that_are_none_get_one_line(text, message):
    with pytest.raises(ValueError, match=f"recipe_args: {message}") as caught:
        as_mapping("recipe_args", text)
    assert "\n" not in str(caught.value)


def test_a_list_is_no_mapping():
    with pytest.raises(TypeError, match="got list"):
        as_mapping("x", [1])


def test_choices():
    check_choice("x", "ema", ("ema", "live"))
    with pytest.raises(ValueError, match=r"x='emma' \(did you mean 'ema'\?\): expected one of ema"):
        check_choice("x", "emma", ("ema", "live"))


@pytest.mark.parametrize(
    ("value", "hint"),
    [
        (1, int),
        (1, float),
        (1.5, float),
        (None, int | None),
        (True, bool),
        (["a"], list[str] | None),
        ({"a": 1}, dict | str | None),
    ],
)
def test_kinds(value, hint):
    check_kind("x", value, hint)


@pytest.mark.parametrize(
    ("value", "hint", "wanted"),
    [
        (True, int, "int"),
        (True, float, "float"),
        (1.0, int, "int"),
        ("1", int, "int"),
        (1, bool, "bool"),
        (None, str, "str"),
        ({}, int | None, "int or None, got a mapping"),
    ],
)
def test_wrong_kinds(value, hint, wanted):
    with pytest.raises(ValueError, match=f"x: expected {wanted}"):
        check_kind("x", value, hint)
