"""Files of a run folder: whole lines, valid JSON, token texts that add up."""

from __future__ import annotations

import json

import pytest
import torch

from sdkernels.contexts import Example, Rollout
from sdkernels.train.batch import Row
from sdkernels.train.records import JsonLines, pick_rows, token_texts, write_json


def test_lines_are_json_without_nan(tmp_path):
    log = JsonLines(tmp_path / "deep" / "metrics.jsonl")
    log.append({"step": 1, "loss": float("nan"), "text": "ü\n"})
    (line,) = log.file.read_text().splitlines()
    strict = json.loads(line, parse_constant=pytest.fail)
    assert strict == {"step": 1, "loss": None, "text": "ü\n", "not_finite": {"loss": "NaN"}}


def test_later_steps_and_half_lines_are_dropped(tmp_path):
    log = JsonLines(tmp_path / "metrics.jsonl")
    for step in (1, 2, 2, 3):
        log.append({"step": step})
    with log.file.open("a") as handle:
        handle.write('{"step": 4, "lo')  # a kill in the middle of a write
    assert [record["step"] for record in log.read()] == [1, 2, 2, 3]
    log.keep_until(2)
    assert [json.loads(line)["step"] for line in log.file.read_text().splitlines()] == [1, 2, 2]
    log.keep_until(0)
    assert log.read() == []
    JsonLines(tmp_path / "none.jsonl").keep_until(3)
    assert not (tmp_path / "none.jsonl").exists()


def test_writing_json_leaves_no_draft(tmp_path):
    write_json(tmp_path / "a" / "s.json", {"x": "ü", "t": torch.tensor([1.0])})
    assert json.loads((tmp_path / "a" / "s.json").read_text()) == {"x": "ü", "t": [1.0]}
    assert [path.name for path in (tmp_path / "a").iterdir()] == ["s.json"]


@pytest.mark.parametrize("text", ["plain words", " leading", "", "grün — 漢字 🙂!", "a\n\nb"])
def test_token_texts_add_up(tokenizer, text):
    ids = [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]
    texts = token_texts(ids, tokenizer)
    assert len(texts) == len(ids)
    assert "".join(texts) == text + "<|im_end|>"


def test_token_texts_of_broken_characters(tokenizer):
    whole = tokenizer("漢")["input_ids"]
    texts = token_texts([*whole[:2], *tokenizer("abcdefghij")["input_ids"]], tokenizer)
    assert len(texts) == 12
    assert "".join(texts).endswith("cdefghij")


def test_rows_to_show_alternate():
    def row(name, success, tokens=True):
        rollout = Rollout(name, 0, "", [1], success=success)
        return Row(Example(name, []), rollout, [1], counts=[tokens])

    rows = [row("f1", False), row("f2", False), row("s1", True), row("x", True, tokens=False)]
    assert [r.example.id for r in pick_rows(rows, 2)] == ["s1", "f1"]
    assert [r.example.id for r in pick_rows(rows, 9)] == ["s1", "f1", "f2"]
    assert pick_rows(rows, 0) == []
