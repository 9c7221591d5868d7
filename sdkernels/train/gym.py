"""Examples from reasoning-gym, generated procedurally with answers, solutions and hints."""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import json
import logging
from collections.abc import Iterable, Mapping
from typing import Any

from sdkernels.contexts import Example
from sdkernels.train.gym_solutions import WRITERS, worked_solution
from sdkernels.train.verify import GYM_PREFIX, GYM_TASKS

logger = logging.getLogger(__name__)

INSTRUCTION = "Work step by step, and end with one line of the form `Answer: <value>`."
DEFAULT_SIZE = 256


def gym_examples(
    tasks: str,
    *,
    size: int = DEFAULT_SIZE,
    seed: int = 0,
    split: str = "train",
    settings: Mapping[str, Any] | None = None,
) -> list[Example]:
    """`size` examples in all, the tasks taking turns.

    Args:
        tasks: comma-separated names, each with settings of its own in parentheses if wanted:
            `"chain_sum(max_terms=3, max_digits=2), gsm_symbolic"`.
        size: number of examples.
        seed: with `split` and the task it determines every example.
        split: any word; other words give other examples (not disjoint ones by construction: a
            task that has few problems repeats them).
        settings: for all tasks (`{"max_digits": 2}`), or under a task's name for that one.

    Raises:
        ValueError: unknown task, one without a safe verifier, or a setting that it refuses.
    """
    specs = [_parse_task(part) for part in _split(tasks)]
    names = [name for name, _ in specs]
    if len(set(names)) != len(names):
        raise ValueError(f"reasoning-gym tasks {tasks!r}: a task is named twice")
    shared = dict(settings or {})
    own = {name: shared.pop(name) for name in names if isinstance(shared.get(name), Mapping)}
    columns = []
    for rank, (name, inline) in enumerate(specs):
        count = size // len(specs) + (rank < size % len(specs))
        merged = {**shared, **own.get(name, {}), **inline}
        columns.append(_task_examples(name, merged, count, seed, split) if count else [])
    turns = max(map(len, columns))
    return [column[turn] for turn in range(turns) for column in columns if turn < len(column)]


def _task_examples(
    name: str, settings: dict[str, Any], count: int, seed: int, split: str
) -> list[Example]:
    # Upstream seeds problem i with seed + i, so that nearby seeds would share problems.
    digest = hashlib.sha256(f"{seed}/{split}/{name}".encode()).digest()
    source = _create(name, settings, seed=int.from_bytes(digest[:4], "little"), size=4 * count + 16)
    examples: list[Example] = []
    left_out = 0
    for index in range(len(source)):
        if len(examples) == count:
            break
        entry = source[index]
        example = _example(name, entry, f"{name}-{split}-{seed}-{index}")
        if example is None:
            left_out += 1
        else:
            examples.append(example)
    if left_out:
        logger.info("%s: left out %d problems whose answer does not follow", name, left_out)
    if len(examples) < count:
        raise ValueError(
            f"reasoning-gym task {name!r}: only {len(examples)} of {count} problems with these "
            f"settings have an answer that follows; change them or ask for fewer"
        )
    return examples


def _example(name: str, entry: dict[str, Any], identity: str) -> Example | None:
    solution = hint = None
    if name in WRITERS:
        worked = worked_solution(name, entry)
        if worked is None:
            return None
        solution = worked.solution(entry["answer"])
        hint = worked.hint(entry["answer"])
    question = f"{entry['question'].strip()}\n\n{INSTRUCTION}"
    return Example(
        id=identity,
        prompt=[{"role": "user", "content": question}],
        answer=entry["answer"],
        solution=solution,
        hint=hint,
        task=GYM_PREFIX + name,
        metadata={"row": f"reasoning-gym problem {identity}", "question": entry["question"]},
    )


def _create(name: str, settings: dict[str, Any], *, seed: int, size: int) -> Any:
    try:
        from reasoning_gym.factory import DATASETS, create_dataset
    except ImportError as error:
        raise ValueError(
            "reasoning-gym is not installed: pip install 'sdkernels[train]'"
        ) from error
    if name not in GYM_TASKS:
        there = "has no verifier here that only parses" if name in DATASETS else "does not exist"
        near = difflib.get_close_matches(name, GYM_TASKS)
        guess = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(
            f"reasoning-gym task {name!r} {there}.{guess} Known: {', '.join(sorted(GYM_TASKS))}"
        )
    fields = [f.name for f in dataclasses.fields(DATASETS[name][1])]
    accepted = [field for field in fields if field not in ("seed", "size")]
    for key in settings:
        if key not in accepted:
            near = difflib.get_close_matches(key, accepted)
            guess = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
            raise ValueError(
                f"reasoning-gym task {name!r} has no setting {key!r}.{guess} "
                f"Known: {', '.join(accepted)}"
            )
    try:
        return create_dataset(name, seed=seed, size=size, **settings)
    except (AssertionError, TypeError, ValueError) as error:
        raise ValueError(f"reasoning-gym task {name!r} refuses {settings}: {error}") from error


def _split(text: str) -> Iterable[str]:
    """Split at commas outside parentheses and brackets."""
    depth = 0
    part = ""
    for character in text:
        depth += (character in "([") - (character in ")]")
        if character == "," and depth == 0:
            yield part.strip()
            part = ""
        else:
            part += character
    yield part.strip()


def _parse_task(part: str) -> tuple[str, dict[str, Any]]:
    name, opened, rest = part.partition("(")
    name = name.strip()
    if not name or (opened and not rest.endswith(")")):
        raise ValueError(
            f"reasoning-gym task {part!r}: expected `name` or `name(setting=value, ...)`"
        )
    settings = {}
    for assignment in filter(None, _split(rest.removesuffix(")"))):
        key, equals, value = map(str.strip, assignment.partition("="))
        if not equals:
            raise ValueError(
                f"reasoning-gym task {name!r}: expected setting=value in {assignment!r}"
            )
        try:
            settings[key] = json.loads(value.lower() if value in ("True", "False") else value)
        except ValueError:
            settings[key] = value
    return name, settings
