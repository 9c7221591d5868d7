"""`sdkernels eval` on a tiny random model, alone and under contexts."""

from __future__ import annotations

import json

import pytest
from helpers.tiny_models import byte_tokenizer
from train.conftest import tiny_model

from sdkernels.cli import main
from sdkernels.cli.eval_command import parse_context
from sdkernels.train import evaluation, loading


@pytest.fixture
def evaluate(monkeypatch, tmp_path, capsys):
    def load(name, **_settings):
        tokenizer = byte_tokenizer()
        return tiny_model(tokenizer), tokenizer

    monkeypatch.setattr(loading, "load_model", load)
    data = tmp_path / "sums.jsonl"
    rows = [
        {"prompt": f"{i}+1?", "answer": str(i + 1), "solution": f"{i + 1}.", "hint": "count"}
        for i in range(2)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def call(*arguments):
        base = ["eval", "--dataset", str(data), "--k", "2", "--max-new-tokens", "4"]
        status = main([*base, *arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


def test_alone_and_compared(evaluate, tmp_path):
    _, out, _ = evaluate("--out", str(tmp_path / "a.json"))
    assert "markers published" in out
    rows = [line.split() for line in out.splitlines()]
    assert {row[0] for row in rows if row and "@" in row[0]} == {
        "Avg@2",
        "Avg@2,",
        "Pass@1",
        "Pass@2",
        "Maj@2",
    }
    assert "pass at" not in out
    assert json.loads((tmp_path / "a.json").read_text())["n"] == 2
    _, out, _ = evaluate("--compare", str(tmp_path / "a.json"))
    assert "change since the earlier result (paired)" in out


def test_under_contexts_into_a_study_folder(evaluate, tmp_path):
    contexts = ["reference_solution", "sibling_solution"]
    _, out, err = evaluate("--context", *contexts, "--out", str(tmp_path))
    assert [line.split()[0] for line in out.splitlines()[3:6]] == ["none", *contexts]
    assert "Pass@2  Maj@2" in out
    assert "none: the question alone" in err
    found = json.loads((tmp_path / "teacher_accuracy.json").read_text())
    assert [entry["context"] for entry in found["contexts"]] == ["none", *contexts]
    assert found["dataset"].endswith("sums.jsonl")


def test_contexts_may_be_given_one_by_one(evaluate):
    _, out, _ = evaluate("--context", "hint", "--context", "final_answer", "reference_solution")
    names = [line.split()[0] for line in out.splitlines()[3:7]]
    assert names == ["none", "hint", "final_answer", "reference_solution"]


def test_wrong_contexts_stop_before_a_model_is_loaded(evaluate, monkeypatch):
    monkeypatch.setattr(loading, "load_model", lambda *_: pytest.fail("a model was loaded"))
    for arguments, part in (
        (("--context", "hnit"), "hint"),
        (("--context", "hint("), "NAME(setting=value,...)"),
        (("--context", "hint(a)"), "KEY=VALUE"),
        (("--context", "hint", "--compare", "x.json"), "--compare"),
    ):
        status, _, err = evaluate(*arguments)
        assert status == 2
        assert part in err
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--top-p", "0"), "top_p=0.0: expected a number above 0, at most 1"),
        (("--top-k", "-1"), "argument --top-k: -1: expected a whole number of at least 0"),
        (("--k", "0"), "argument --k: 0: expected a whole number of at least 1"),
        (("--size", "0"), "argument --size: 0: expected"),
        (("--batch-size", "0"), "argument --batch-size: 0: expected"),
    ],
)
def test_wrong_numbers_stop_before_a_model_is_loaded(flags, message, evaluate, monkeypatch, capsys):
    monkeypatch.setattr(loading, "load_model", lambda *_, **__: pytest.fail("a model was loaded"))
    try:
        status, _, err = evaluate(*flags)
    except SystemExit as stop:  # argparse
        status, err = stop.code, capsys.readouterr().err
    assert status == 2
    assert message in err


def test_a_setting_of_text_is_what_was_typed():
    context = parse_context("wrong_answer(choose=fixed, fixed=007)")
    assert context.settings["fixed"] == "007"


def test_sampling_and_template_reach_the_model(evaluate, monkeypatch):
    seen = {}

    def record(_model, _tokenizer, examples, **settings):
        seen.update(settings, prompt=examples[0].prompt[-1]["content"])
        return {"n": 1, "per_example": []}

    monkeypatch.setattr(evaluation, "evaluate", record)
    status, *_ = evaluate(
        *("--top-k", "20", "--instruction", "Box it."),
        *("--chat-template-kwargs", "enable_thinking=false"),
    )
    assert status == 0
    assert seen["sampling"].top_k == 20
    assert seen["template_kwargs"] == {"enable_thinking": False}
    assert seen["prompt"].endswith("Box it.")


def test_columns_of_other_names(evaluate, monkeypatch, tmp_path):
    data = tmp_path / "mine.jsonl"
    data.write_text(json.dumps({"task_text": "1+1?", "result": "2", "answer": "two"}) + "\n")
    seen = []

    def record(_model, _tokenizer, examples, **_settings):
        seen.extend(examples)
        return {"n": 1, "per_example": []}

    monkeypatch.setattr(evaluation, "evaluate", record)
    for columns in (
        "prompt=task_text,answer=result",
        '{"prompt": "task_text", "answer": "result"}',
    ):
        status, *_ = evaluate("--dataset", str(data), "--dataset-columns", columns)
        assert status == 0
        example = seen.pop()
        assert (example.prompt[-1]["content"], example.answer) == ("1+1?", "2")
    for columns, part in (
        ("prompt=task_txt", "there is no column 'task_txt' for `prompt`"),
        ("promptx=task_text", "unknown field 'promptx'"),
        ("prompt", "--dataset-columns: expected key=value, got 'prompt'"),
    ):
        status, _, err = evaluate("--dataset", str(data), "--dataset-columns", columns)
        assert status == 2
        assert part in err
    status, _, err = evaluate("--dataset", "reasoning-gym:chain_sum", "--dataset-columns", "id=x")
    assert status == 2
    assert "not for gym" in err


def test_settings_of_a_context():
    context = parse_context("sibling_solution(choose = shortest, allow_self=true)")
    assert context.name == "sibling_solution"
    assert dict(context.settings)["choose"] == "shortest"
    assert dict(context.settings)["allow_self"] is True
    assert parse_context(" hint() ").name == "hint"
