"""Loading examples: columns and their aliases, prompts, and errors that name the row."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from sdkernels.contexts import Example
from sdkernels.train.data import load_examples


def jsonl(tmp_path: Path, *rows: dict[str, Any]) -> Path:
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def test_all_columns(tmp_path: Path) -> None:
    row = {
        "prompt": "1 + 1?",
        "answer": 2,
        "solution": " two ",
        "teacher_solution": "one and one",
        "hint": "h",
        "feedback": "f",
        "id": 7,
        "task": "number",
        "solution_truncated": True,
        "other": [1],
    }
    assert load_examples(jsonl(tmp_path, row)) == [
        Example(
            id="7",
            prompt=[{"role": "user", "content": "1 + 1?"}],
            answer="2",
            solution="two",
            stronger_solution="one and one",
            hint="h",
            feedback="f",
            task="number",
            metadata={"row": "data.jsonl, line 1"},
            solution_truncated=True,
        )
    ]


def test_whether_a_solution_was_cut_off_is_true_or_false(tmp_path: Path) -> None:
    rows = [{"prompt": "a", "solution_truncated": value} for value in (True, False, None, math.nan)]
    found = load_examples(jsonl(tmp_path, *rows))
    assert [example.solution_truncated for example in found] == [True, False, False, False]
    with pytest.raises(ValueError, match=r"line 1: `solution_truncated` must be .* got 'no'"):
        load_examples(jsonl(tmp_path, {"prompt": "a", "solution_truncated": "no"}))


@pytest.mark.parametrize("alias", ["question", "problem", "input", "instruction", "query"])
def test_aliases_and_rows_without_some_columns(tmp_path: Path, alias: str) -> None:
    path = jsonl(tmp_path, {alias: "a", "ground_truth": "x"}, {alias: "b", "rationale": None})
    first, second = load_examples(str(path))
    assert (first.prompt[0]["content"], first.answer, first.id) == ("a", "x", "0")
    assert (second.answer, second.solution, second.id) == (None, None, "1")


def test_the_own_name_of_a_field_wins_over_aliases(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": "a", "question": "b", "answer": "1", "target": "2"})
    [example] = load_examples(path)
    assert example.prompt[0]["content"] == "a"
    assert example.answer == "1"


def test_two_aliases_are_refused_until_one_is_chosen(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"problem": "a", "input": "b"})
    with pytest.raises(
        ValueError, match=r"columns 'problem', 'input' could all be the `prompt`.*columns prompt="
    ):
        load_examples(path)
    [example] = load_examples(path, columns={"prompt": "input"})
    assert example.prompt[0]["content"] == "b"


def test_a_chosen_column_serves_one_field_only(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": "a", "solution": "s", "target": "t"})
    [example] = load_examples(path, columns={"answer": "solution"})
    assert (example.answer, example.solution) == ("s", None)


def test_messages(tmp_path: Path) -> None:
    messages = [{"role": "system", "content": "s"}, {"role": "user", "content": "u"}]
    [example] = load_examples(jsonl(tmp_path, {"messages": messages}), instruction="not added")
    assert example.prompt == messages


def test_an_instruction_is_added_to_texts(tmp_path: Path) -> None:
    [example] = load_examples(jsonl(tmp_path, {"prompt": "q"}), instruction="Be brief.")
    assert example.prompt[0]["content"] == "q\n\nBe brief."


def test_a_gsm8k_answer_is_taken_apart(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"question": "q", "answer": "1 + 1 = 2\n#### 2"})
    [example] = load_examples(path)
    assert (example.answer, example.solution) == ("2", "1 + 1 = 2\nAnswer: 2")
    path = jsonl(tmp_path, {"question": "q", "answer": "a #### 2", "solution": "own"})
    assert load_examples(path)[0].solution == "own"


def test_limit_and_split(tmp_path: Path) -> None:
    path = jsonl(tmp_path, *({"prompt": str(i)} for i in range(5)))
    assert [example.id for example in load_examples(path, limit=2)] == ["0", "1"]
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        load_examples(path, limit=0)


@pytest.mark.parametrize("prefix", ["reasoning-gym:", "reasoning_gym/"])
def test_reasoning_gym(prefix: str) -> None:
    examples = load_examples(f"{prefix}chain_sum,gcd", size=4, seed=1)
    assert [example.task[14:] for example in examples] == ["chain_sum", "gcd"] * 2
    assert load_examples(f"{prefix}chain_sum,gcd", limit=4, seed=1) == examples
    assert load_examples(f"{prefix}chain_sum,gcd", size=4, limit=1, seed=1) == examples[:1]
    with pytest.raises(ValueError, match="columns and instruction are for files"):
        load_examples(f"{prefix}gcd", instruction="x")


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([], "the data set is empty"),
        (
            [{"text": "a"}],
            r"no column for the prompt; expected one of 'prompt', .*columns are 'text'",
        ),
        ([{"prompt": "a"}, {"prompt": " "}], r"data\.jsonl, line 2: the prompt .* is empty"),
        ([{"prompt": None}], r"line 1: the prompt \(column 'prompt'\) is empty"),
        ([{"prompt": "a"}, {"answer": "b"}], r"line 2: the prompt .* is empty"),
        ([{"prompt": float("nan")}], r"line 1: the prompt .* is empty"),
        ([{"prompt": []}], r"line 1: the prompt .* is empty"),
        ([{"prompt": {"a": 1}}], r"line 1: column 'prompt' must be a text or a number, got dict"),
        (
            [{"prompt": "a", "answer": ["x"]}],
            "'answer' must be a text or a number, got list",
        ),
        ([{"prompt": ["a"]}], r"message 1 of column 'prompt' must be an object with `role`"),
        ([{"prompt": [{"role": "bot", "content": "a"}]}], "message 1 .* has role 'bot'; expected"),
        ([{"prompt": [{"role": "user", "content": " "}]}], "message 1 .* has no text"),
        ([{"prompt": [{"role": "user", "content": None}]}], "message 1 .* has no text"),
        (
            [{"prompt": [{"role": "assistant", "content": "a"}]}],
            r"must end with a user message, it ends with role 'assistant'",
        ),
        (
            [{"prompt": "a", "id": 1}, {"prompt": "b", "id": "2"}, {"prompt": "c", "id": "1"}],
            r"line 3: its id '1' is that of data\.jsonl, line 1 too",
        ),
    ],
)
def test_bad_rows_are_named(tmp_path: Path, rows: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_examples(jsonl(tmp_path, *rows))


def test_required_fields(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"prompt": "a", "answer": 0}, {"prompt": "b", "answer": ""})
    assert len(load_examples(path)) == 2
    with pytest.raises(ValueError, match=r"line 2: it has no `answer` \(accepted columns: 'answ"):
        load_examples(path, require=["answer"])
    with pytest.raises(ValueError, match="require: unknown field 'reward'"):
        load_examples(path, require=["reward"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": 3}, "size and settings are for reasoning-gym"),
        ({"settings": {"a": 1}}, "size and settings are for reasoning-gym"),
        ({"columns": {"prompt": "nope"}}, r"no column 'nope' for `prompt`; columns: 'prompt'"),
        ({"columns": {"reward": "prompt"}}, "columns: unknown field 'reward'"),
    ],
)
def test_settings_that_do_not_apply(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_examples(jsonl(tmp_path, {"prompt": "a"}), **settings)
