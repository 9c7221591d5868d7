"""JSON without NaN that still tells where one was."""

from __future__ import annotations

import json
import math

import pytest
import torch

from sdkernels.train.strict_json import dumps, restore, strict

INF = math.inf


@pytest.mark.parametrize(
    ("value", "written"),
    [
        ({"a": 1.5, "b": [1, None]}, {"a": 1.5, "b": [1, None]}),
        ({"a": INF}, {"a": None, "not_finite": {"a": "Infinity"}}),
        ({"a": [1.0, -INF]}, {"a": [1.0, None], "not_finite": {"a": {"1": "-Infinity"}}}),
        (
            {"s": {"x": INF}, "t": 2},
            {"s": {"x": None, "not_finite": {"x": "Infinity"}}, "t": 2},
        ),
        ([{"a": -INF}], [{"a": None, "not_finite": {"a": "-Infinity"}}]),
        (INF, None),
    ],
)
def test_what_is_written(value, written):
    assert strict(value) == written
    if not isinstance(value, float):  # a bare number has no object to note it in
        assert restore(json.loads(dumps(value), parse_constant=pytest.fail)) == value


def test_nan_comes_back():
    value = {"loss": math.nan, "gap": [0.5, math.nan]}
    assert strict(value)["not_finite"] == {"loss": "NaN", "gap": {"1": "NaN"}}
    back = restore(strict(value))
    assert math.isnan(back["loss"])
    assert back["gap"][0] == 0.5
    assert math.isnan(back["gap"][1])
    assert "not_finite" not in back


def test_writing_what_was_written_before_keeps_the_note():
    once = strict({"last": {"loss": math.nan}})
    assert strict(once) == once


def test_tensors_become_lists():
    assert strict({"t": torch.tensor([1.0, INF])}) == {
        "t": [1.0, None],
        "not_finite": {"t": {"1": "Infinity"}},
    }


@pytest.mark.parametrize(
    "note",
    [3, {"a": "huge"}, {"b": {"9": "NaN"}}, {"b": {"x": "NaN"}}, {"b": ["NaN"]}, {"a": 7}],
)
def test_a_damaged_note_changes_nothing(note):
    assert restore({"a": None, "b": [1], "not_finite": note})["b"] == [1]
    assert restore({"a": None, "b": [1], "not_finite": note})["a"] is None
