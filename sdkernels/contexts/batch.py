"""Building the teacher prompts of a whole batch, and checking a data set before training."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace

from sdkernels.contexts.compose import count_tokens
from sdkernels.contexts.types import (
    Context,
    Example,
    Message,
    Rollout,
    Services,
    TeacherPrompt,
    has_text,
    needs_writer,
    written,
)

logger = logging.getLogger(__name__)

SHOWN_ROWS = 5


@dataclass(frozen=True)
class _Answered:
    """A critic that has answered already, so that the builder asks nothing twice."""

    critiques: dict[int, str | None]

    def critique(self, pairs: Sequence[tuple[Example, Rollout]]) -> list[str | None]:
        return [self.critiques[id(rollout)] for _, rollout in pairs]


def build_batch(
    context: Context,
    examples: Sequence[Example],
    rollouts: Sequence[Rollout],
    services: Services | None = None,
) -> list[list[Message] | None]:
    """The messages alone of what `build_prompts` makes."""
    prompts = build_prompts(context, examples, rollouts, services)
    return [None if prompt is None else prompt.messages for prompt in prompts]


def build_prompts(
    context: Context,
    examples: Sequence[Example],
    rollouts: Sequence[Rollout],
    services: Services | None = None,
    *,
    group_size: int | None = None,
) -> list[TeacherPrompt | None]:
    """The teacher's prompt of every rollout, None where it gets no signal.

    `examples[i]` is the problem of `rollouts[i]`. A group are the rollouts with the same
    `example_id`, or with `group_size` that many in a row, so that a problem may come twice. A
    context that asks a critic or a writer asks it once for the whole batch.
    """
    if len(examples) != len(rollouts):
        raise ValueError(
            f"examples and rollouts must be as long as each other, "
            f"got {len(examples)} and {len(rollouts)}"
        )
    services = services or Services()
    groups = _groups(rollouts, group_size)
    if context.ask is not None:
        return _written_prompts(context, examples, rollouts, groups, services)
    if context.generates and services.critic is not None:
        critiques = services.critic.critique(list(zip(examples, rollouts, strict=True)))
        _log_unanswered("critic", rollouts, critiques)
        answers = dict(zip(map(id, rollouts), critiques, strict=True))
        # `replace` keeps the same `counts`, so that the caller sees what is counted.
        services = replace(services, critic=_Answered(answers))
    return [
        context.prompt(example, rollout, group, services)
        for example, rollout, group in zip(examples, rollouts, groups, strict=True)
    ]


def _groups(rollouts: Sequence[Rollout], size: int | None) -> list[list[Rollout]]:
    """The group of every rollout."""
    if size is not None:
        if size < 1 or len(rollouts) % size:
            raise ValueError(
                f"group_size must divide the {len(rollouts)} rollouts into whole groups, got {size}"
            )
        slices = [list(rollouts[i : i + size]) for i in range(0, len(rollouts), size)]
        return [slices[i // size] for i in range(len(rollouts))]
    groups: dict[str, list[Rollout]] = defaultdict(list)
    for rollout in rollouts:
        groups[rollout.example_id].append(rollout)
    return [groups[rollout.example_id] for rollout in rollouts]


def _written_prompts(
    context: Context,
    examples: Sequence[Example],
    rollouts: Sequence[Rollout],
    groups: Sequence[Sequence[Rollout]],
    services: Services,
) -> list[TeacherPrompt | None]:
    rows = list(zip(examples, rollouts, groups, strict=True))
    requests = [context.request(*row, services) for row in rows]
    asked = [index for index, request in enumerate(requests) if request is not None]
    replies: list[str | None] = [None] * len(rows)
    answers = written(context, [request for request in requests if request is not None], services)
    for index, reply in zip(asked, answers, strict=True):
        replies[index] = reply
    _log_unanswered("writer", [rollouts[index] for index in asked], answers)
    return [
        context.prompt(*row, services, reply=reply)
        for row, reply in zip(rows, replies, strict=True)
    ]


def validate(
    examples: Sequence[Example],
    context: Context,
    *,
    services: Services | None = None,
    strict: bool = True,
) -> list[str]:
    """Check before training that the examples have what `context` needs, and that it fits.

    Returns the problems, one line each. With `strict` any problem raises; without it they are
    logged, and rows without the field then get weight 0, too long texts are cut visibly.

    Raises:
        ValueError: no example at all, a critic that is needed and not given, and with `strict`
            any row that lacks a needed field or whose text is over `services.max_context_tokens`.
    """
    services = services or Services()
    if not examples:
        raise ValueError("the data set is empty: there is no example to train on")
    if context.ask is not None and services.the_writer() is None:
        raise ValueError(needs_writer(context.name))
    if context.generates and context.ask is None and services.critic is None:
        raise ValueError(
            f"context {context.name!r} needs a critic: a local model (LocalCritic) or the url of "
            f"a server (ServerCritic)"
        )
    lacks = [rows_without(examples, need, "context", context.name) for need in context.needs]
    problems = [lack for lack in lacks if lack is not None]
    if context.needs and context.made_of == "data":
        problems += _unusable_texts(examples, context, services)
    if problems and strict:
        raise ValueError("\n".join(problems))
    for problem in problems:
        logger.warning("%s", problem)
    return problems


def _log_unanswered(who: str, rollouts: Sequence[Rollout], answers: Sequence[str | None]) -> None:
    missing = [
        f"rollout {rollout.index} of {rollout.example_id!r}"
        for rollout, answer in zip(rollouts, answers, strict=True)
        if answer is None
    ]
    if not missing:
        return
    level = logging.WARNING if len(missing) == len(answers) else logging.INFO
    logger.log(
        level,
        "%s: no usable text for %d of %d rollouts, which get weight 0: %s. An empty or "
        "looping answer is not usable; a larger critic or critic_max_new_tokens may help.",
        who,
        len(missing),
        len(answers),
        _listing(missing),
    )


def rows_without(examples: Sequence[Example], need: str, kind: str, name: str) -> str | None:
    """One line that names the rows without text in the field `need` (`"a|b"`: in both), which the
    `kind` (context, recipe) called `name` cannot do without; None where all have it.
    """
    rows = enumerate(examples, start=1)
    found = [_row(number, example) for number, example in rows if not has_text(example, need)]
    if not found:
        return None
    return (
        f"{kind} {name!r} needs {_field(need)}, which {_share(found, examples)} lack: "
        f"{_listing(found)}. Add it, leave these rows out, or choose a {kind} without it."
    )


def _unusable_texts(examples: Sequence[Example], context: Context, services: Services) -> list[str]:
    """Rows whose field is there, but leaves nothing to show, or too much."""
    empty: list[str] = []
    long: list[str] = []
    limit = services.max_context_tokens
    if limit is not None and services.tokenizer is None:
        raise ValueError("max_context_tokens needs a tokenizer: pass Services(tokenizer=...)")
    for number, example in enumerate(examples, start=1):
        if context.missing(example):
            continue
        nothing = Rollout(example_id=example.id, index=0, text="", token_ids=[])
        privileged = context.build(example, nothing, [], services, **context.settings)
        if privileged is None:
            empty.append(_row(number, example))
        elif limit is not None:
            tokens = sum(
                count_tokens(part.text, services.tokenizer) for part in privileged.sections
            )
            if tokens > limit:
                long.append(f"{_row(number, example)}, {tokens} tokens")
    fields = " and ".join(_field(need) for need in context.needs)
    problems = []
    if empty:
        problems.append(
            f"context {context.name!r} finds nothing to show in {fields} of "
            f"{_share(empty, examples)} ({context.on_empty}): {_listing(empty)}."
        )
    if long:
        problems.append(
            f"context {context.name!r}: {fields} of {_share(long, examples)} is longer than the "
            f"context limit of {limit} tokens: {_listing(long)}. Raise max_context_tokens, shorten "
            f"or leave out these rows, leave more room (max_prompt_length, "
            f"max_completion_length), or allow cutting (truncate_context: true)."
        )
    return problems


def _field(need: str) -> str:
    return " or ".join(f"`{name}`" for name in need.split("|"))


def _row(number: int, example: Example) -> str:
    return f"{example.metadata.get('row') or f'example {number}'} (id {example.id!r})"


def _share(found: Sequence[str], examples: Sequence[Example]) -> str:
    return f"{len(found)} of {len(examples)} examples"


def _listing(found: Sequence[str]) -> str:
    more = len(found) - SHOWN_ROWS
    return "; ".join(found[:SHOWN_ROWS]) + (f"; and {more} more" if more > 0 else "")
