"""Examples from a local file, a `datasets` data set, or reasoning-gym."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from sdkernels.contexts import Example, Message
from sdkernels.train.gym import DEFAULT_SIZE, gym_examples
from sdkernels.train.sources import SUFFIXES, Row, read_dataset, read_file

GYM_SOURCES = ("reasoning-gym:", "reasoning_gym:", "reasoning_gym/", "reasoning-gym/")

# Columns that are read as a field, its own name first.
ALIASES = {
    "prompt": ("prompt", "question", "problem", "input", "instruction", "query", "messages"),
    "answer": (
        "answer",
        "final_answer",
        "ground_truth",
        "expected_answer",
        "gold_answer",
        "target",
    ),
    "solution": ("solution", "reference_solution", "rationale", "explanation"),
    "stronger_solution": ("stronger_solution", "teacher_solution"),
    "hint": ("hint", "key_idea"),
    "feedback": ("feedback",),
    "solution_truncated": ("solution_truncated",),
    "id": ("id", "uid", "problem_id", "unique_id"),
    "task": ("task",),
}
ROLES = ("system", "user", "assistant")


def load_examples(
    source: str | Path,
    *,
    split: str = "train",
    limit: int | None = None,
    seed: int = 0,
    size: int | None = None,
    settings: Mapping[str, Any] | None = None,
    columns: Mapping[str, str] | None = None,
    instruction: str | None = None,
    require: Sequence[str] = (),
) -> list[Example]:
    """Load the examples of `source`, checked.

    Args:
        source: a .jsonl, .json or .parquet file; `"reasoning-gym:chain_sum,gsm_symbolic"` (with
            settings: `"reasoning-gym:chain_sum(max_terms=3)"`); or a `datasets` id,
            `"owner/name"` or `"owner/name:configuration"`.
        split: split of a `datasets` id; for reasoning-gym another word gives other problems.
        limit: take the first so many examples.
        seed: seed of reasoning-gym.
        size: number of examples to generate with reasoning-gym, over all tasks (default 256).
        settings: settings of the reasoning-gym tasks, see `gym_examples`.
        columns: which column is which field, `{"prompt": "problem"}`, where the names alone
            do not say it. Else the aliases in `ALIASES` are accepted.
        instruction: added to prompts that are a text, as a paragraph of its own.
        require: fields that every example must have, e.g. `("answer",)`.

    A text prompt becomes one user turn; a list of messages must end with one. A GSM8K answer
    (`working #### answer`) is taken apart into answer and solution.

    Raises:
        ValueError: what is wrong, in which file and row or line.
    """
    for name, value in (("limit", limit), ("size", size)):
        if value is not None and value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    text = str(source)
    gym = next((prefix for prefix in GYM_SOURCES if text.startswith(prefix)), None)
    if gym is not None:
        if columns or instruction:
            raise ValueError("columns and instruction are for files and data sets, not for gym")
        size = size or limit or DEFAULT_SIZE
        tasks = text.removeprefix(gym)
        examples = gym_examples(tasks, size=size, seed=seed, split=split, settings=settings)
        examples = examples[:limit]
    else:
        if size is not None or settings:
            raise ValueError(
                f"size and settings are for reasoning-gym, but the source is {text!r}; "
                f"to take fewer examples use limit"
            )
        path = Path(source)
        rows = read_file(path) if path.suffix in SUFFIXES else read_dataset(text, split)
        examples = _examples(list(islice(rows, limit)), text, columns or {}, instruction)
    _check(examples, require)
    return examples


def _examples(
    rows: list[Row], source: str, columns: Mapping[str, str], instruction: str | None
) -> list[Example]:
    if not rows:
        raise ValueError(f"{source}: the data set is empty")
    present = list(dict.fromkeys(column for _, row in rows for column in row))
    fields = _choose_columns(present, source, columns)
    return [
        _example(place, row, fields, instruction, number)
        for number, (place, row) in enumerate(rows)
    ]


def _choose_columns(
    present: Sequence[str], source: str, columns: Mapping[str, str]
) -> dict[str, str]:
    """Which column each field is read from."""
    for field, column in columns.items():
        if field not in ALIASES:
            raise ValueError(f"columns: unknown field {field!r}; known: {', '.join(ALIASES)}")
        if column not in present:
            raise ValueError(
                f"{source}: there is no column {column!r} for `{field}`; columns: {_list(present)}"
            )
    chosen = dict(columns)
    for field, aliases in ALIASES.items():
        if field in chosen:
            continue
        found = [alias for alias in aliases if alias in present and alias not in chosen.values()]
        if len(found) > 1 and found[0] != field:
            raise ValueError(
                f"{source}: the columns {_list(found)} could all be the `{field}`; say which it "
                f"is, e.g. dataset_columns {field}={found[0]}"
            )
        if found:
            chosen[field] = found[0]
    if "prompt" not in chosen:
        raise ValueError(
            f"{source}: there is no column for the prompt; expected one of "
            f"{_list(ALIASES['prompt'])}, or name it with dataset_columns prompt=NAME; the columns "
            f"are {_list(present)}"
        )
    return chosen


def _example(
    place: str,
    row: Mapping[str, Any],
    fields: Mapping[str, str],
    instruction: str | None,
    number: int,
) -> Example:
    values = {
        field: _text(row.get(column), column, place)
        for field, column in fields.items()
        if field not in ("prompt", "solution_truncated")
    }
    answer, solution = values.get("answer"), values.get("solution")
    if answer is not None and "####" in answer:
        working, _, answer = (part.strip() for part in answer.rpartition("####"))
        solution = solution or f"{working}\nAnswer: {answer}"
    return Example(
        id=values.get("id") or str(number),
        prompt=_prompt(row.get(fields["prompt"]), fields["prompt"], place, instruction),
        answer=answer,
        solution=solution,
        stronger_solution=values.get("stronger_solution"),
        hint=values.get("hint"),
        feedback=values.get("feedback"),
        task=values.get("task") or "",
        metadata={"row": place},
        solution_truncated=_flag(row.get(fields.get("solution_truncated", "")), place),
    )


def _text(value: Any, column: str, place: str) -> str | None:
    """A scalar as text; nothing, NaN (how tables write nothing) and white space as None."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, (str, int, float)):
        raise ValueError(
            f"{place}: column {column!r} must be a text or a number, got {type(value).__name__}"
        )
    return str(value).strip() or None


def _flag(value: Any, place: str) -> bool:
    """`solution_truncated` of a row; nothing and NaN (how tables write nothing) as False."""
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return False
    if not isinstance(value, bool):
        raise ValueError(f"{place}: `solution_truncated` must be true or false, got {value!r}")
    return value


def _prompt(value: Any, column: str, place: str, instruction: str | None) -> list[Message]:
    if isinstance(value, (list, tuple)):
        return _messages(value, column, place)
    text = _text(value, column, place)
    if text is None:
        raise ValueError(f"{place}: the prompt (column {column!r}) is empty")
    return [{"role": "user", "content": f"{text}\n\n{instruction}" if instruction else text}]


def _messages(value: Iterable[Any], column: str, place: str) -> list[Message]:
    messages = []
    for number, message in enumerate(value, start=1):
        where = f"{place}: message {number} of column {column!r}"
        if not isinstance(message, Mapping) or not {"role", "content"} <= set(message):
            raise ValueError(f"{where} must be an object with `role` and `content`")
        role, content = message["role"], message["content"]
        if role not in ROLES:
            raise ValueError(f"{where} has role {role!r}; expected one of {_list(ROLES)}")
        if not isinstance(content, str) or not content.strip():
            raise ValueError(f"{where} has no text as its content")
        messages.append({"role": role, "content": content})
    if not messages:
        raise ValueError(f"{place}: the prompt (column {column!r}) is empty")
    if messages[-1]["role"] != "user":
        raise ValueError(
            f"{place}: the prompt (column {column!r}) must end with a user message, "
            f"it ends with role {messages[-1]['role']!r}"
        )
    return messages


def _check(examples: Sequence[Example], require: Sequence[str]) -> None:
    first: dict[str, str] = {}
    for example in examples:
        place = example.metadata["row"]
        if example.id in first:
            raise ValueError(f"{place}: its id {example.id!r} is that of {first[example.id]} too")
        first[example.id] = place
        for field in require:
            if field not in ALIASES:
                raise ValueError(f"require: unknown field {field!r}; known: {', '.join(ALIASES)}")
            if not getattr(example, field):
                accepted = " or ".join(map(repr, ALIASES[field]))
                raise ValueError(f"{place}: it has no `{field}` (accepted columns: {accepted})")


def _list(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
