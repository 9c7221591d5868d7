"""What is compared with what; what is done with a method that does not run, and with a person who
stops the measurement.
"""

import argparse
from typing import Any

import pytest
from helpers.tiny_models import byte_tokenizer
from train.conftest import tiny_model

from sdkernels.bench import method_cost, trainer_step
from sdkernels.train.errors import Interrupted

OPTIONS = argparse.Namespace(recipes=[], contexts=None, generations=4)


@pytest.fixture
def outcomes(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Seconds, seconds and tokens, or the error, by recipe."""
    found: dict[str, Any] = {}

    def cost_of(_options: Any, _model: Any, _tokenizer: Any, **method: Any) -> dict[str, Any]:
        outcome = found.get(method["recipe"], 2.0)
        if isinstance(outcome, Exception):
            raise outcome
        seconds, tokens = outcome if isinstance(outcome, tuple) else (outcome, 128)
        return {"seconds": seconds, "num_tokens": tokens, "signal_share": tokens / 128}

    monkeypatch.setattr(method_cost, "parts", lambda _: (None, None))
    monkeypatch.setattr(method_cost, "cost_of", cost_of)
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


@pytest.mark.parametrize(
    ("named", "expected"),
    [
        ({"recipes": ["gkd", "opsd"]}, ["recipe gkd", "recipe opsd"]),
        ({"contexts": ["none"], "recipes": ["gkd"]}, ["recipe gkd", "context none"]),
        ({"contexts": ["verifier_feedback"]}, ["context verifier_feedback, on=all"]),
    ],
)
def test_some_are_measured_by_name(named: dict[str, list[str]], expected: list[str]) -> None:
    options = argparse.Namespace(**{"recipes": None, "contexts": None, "generations": 4} | named)
    assert [name for name, _ in method_cost.methods_of(options)] == expected


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--recipes", "sdpoo"], "sdpoo"),
        (["--contexts", "sdpoo"], "sdpoo"),
        (["--recipes", "--generations", "3"], "error: --generations=3: expected an even number"),
    ],
)
def test_methods_are_refused_before_anything_runs(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stopped:
        trainer_step.main(arguments)
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err


def test_who_stops_it_stops_all_of_it(outcomes: dict[str, Any]) -> None:
    outcomes["gkd"] = Interrupted("stopped after step 1 of 4", 15)
    with pytest.raises(Interrupted):
        method_cost.measure(OPTIONS)


def test_a_step_that_trains_fewer_tokens_has_no_ratio(outcomes: dict[str, Any]) -> None:
    outcomes["rlcsd"] = (1.0, 0)
    [row] = [row for row in method_cost.measure(OPTIONS) if row["name"] == "recipe rlcsd"]
    assert "of_sdpo" not in row
    assert row["not_compared"] == (
        "trains 0 of SDPO's 128 tokens; the context has something to say for 0% of rollouts"
    )


def test_nor_has_one_that_leaves_out_teacher_passes(
    outcomes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CEPO keeps the verifier's advantage where no sibling contradicts."""
    usual = method_cost.cost_of

    def cost_of(*parts: Any, **method: Any) -> dict[str, Any]:
        share = {"cepo": 0.0, "grpo": None}.get(method["recipe"], 1.0)
        return usual(*parts, **method) | {"signal_share": share}

    monkeypatch.setattr(method_cost, "cost_of", cost_of)
    rows = {row["name"]: row for row in method_cost.measure(OPTIONS)}
    assert "for 0% of rollouts" in rows["recipe cepo"]["not_compared"]
    assert rows["recipe grpo"]["of_sdpo"] == 1.0


def test_groups_need_two_of_each_verdict(outcomes: dict[str, Any]) -> None:
    for generations in (2, 5):
        options = argparse.Namespace(recipes=[], contexts=None, generations=generations)
        with pytest.raises(ValueError, match=f"--generations={generations}: expected an even"):
            method_cost.measure(options)


def test_recipes_run_with_the_context_that_they_bring() -> None:
    methods = dict(method_cost.methods_of(OPTIONS))
    assert methods["recipe sdpo"] == {"recipe": "sdpo", "context": "reference_solution"}
    for name in ("cepo", "rlcsd", "rosd", "grpo"):
        assert methods[f"recipe {name}"] == {"recipe": name}


@pytest.mark.parametrize(
    ("method", "share"),
    [
        ({"recipe": "rlcsd"}, 1.0),
        ({"recipe": "cepo"}, 1.0),
        ({"recipe": "sdpo", "context": "sibling_solution"}, 1.0),
        ({"recipe": "sdpo", "context": "demonstration"}, 1.0),
        ({"recipe": "sdpo", "context": "stronger_solution"}, 1.0),
        ({"recipe": "sdpo", "context": "verifier_feedback", "context_args": {"on": "all"}}, 1.0),
        ({"recipe": "sdpo", "context": "failed_attempt"}, 0.5),
    ],
)
def test_every_rollout_is_trained_where_the_definition_allows_it(
    method: dict[str, Any], share: float
) -> None:
    options = argparse.Namespace(
        model="tiny", prompts=1, generations=4, prompt=20, completion=8, steps=1
    )
    tokenizer = byte_tokenizer()
    model = tiny_model(tokenizer, max_position_embeddings=4096)
    cost = method_cost.cost_of(options, model, tokenizer, **method)
    assert (cost["num_tokens"], cost["signal_share"]) == (32 * share, share)
