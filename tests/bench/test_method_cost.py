"""What is done with a method that does not run, and with a person who stops the measurement."""

import argparse
from typing import Any

import pytest

from sdkernels.bench import method_cost
from sdkernels.train.errors import Interrupted

OPTIONS = argparse.Namespace(recipes=True, contexts=False)


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Seconds, or the error, by recipe."""
    found: dict[str, Any] = {}

    def seconds_of(_options: Any, _model: Any, _tokenizer: Any, **method: Any) -> float:
        outcome = found.get(method["recipe"], 2.0)
        if isinstance(outcome, Exception):
            raise outcome
        return float(outcome)

    monkeypatch.setattr(method_cost, "parts", lambda _: (None, None))
    monkeypatch.setattr(method_cost, "seconds_of", seconds_of)
    return found


def test_costs_are_relative_and_reasons_are_kept(outcomes: dict[str, Any]) -> None:
    outcomes |= {"opsd": 3.0, "gkd": ValueError("no")}
    rows = {row["name"]: row for row in method_cost.measure(OPTIONS)}
    assert rows["recipe opsd"]["of_sdpo"] == 1.5
    assert rows["recipe gkd"] == {"name": "recipe gkd", "not_run": "no"}


def test_a_recipe_is_measured_with_the_context_that_it_brings(outcomes: dict[str, Any]) -> None:
    outcomes["rosd"] = AssertionError("it must not be tried")
    rows = {row["name"]: row for row in method_cost.measure(OPTIONS)}
    assert rows["recipe rosd"]["not_run"] == "it generates text"


def test_who_stops_it_stops_all_of_it(outcomes: dict[str, Any]) -> None:
    outcomes["gkd"] = Interrupted("stopped after step 1 of 4", 15)
    with pytest.raises(Interrupted):
        method_cost.measure(OPTIONS)
