"""Frozen critics that correct a student's attempt step by step (2606.11173).

The critic copies the steps that are right word for word and edits only the wrong ones, so that the
teacher's evidence falls on the error and not on the whole response. Replies are cached on disk
under a hash of the model, the prompt and the settings.
"""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdkernels.contexts.cache import DiskCache, content_key
from sdkernels.contexts.thinking import strip_thinking
from sdkernels.contexts.types import Example, Message, Rollout

logger = logging.getLogger(__name__)

ATTEMPT = "student's attempt"
INSTRUCTION = """\
Above is a student's attempt at a problem, with the reference for it. Write the attempt again, \
step by step:
- Copy every step that is right word for word, wrong style and all.
- Where a step is wrong or incomplete, put the corrected step in its place, and carry the \
correction through the steps that follow from it.
- Keep the student's order, notation, numbering, tags and size of steps. Don't merge, split or \
leave out steps, and don't put the reference's derivation in place of the student's.
- If the attempt stops early, finish it in the same manner, with its final answer in the form \
that the problem asks for.
Write only the resulting steps: no remarks, no verdict, no heading."""


@dataclass(frozen=True)
class Reply:
    """What a critic wrote. `cut`: the token limit ended it."""

    text: str
    cut: bool = False


def critique_messages(example: Example, rollout: Rollout) -> list[Message] | None:
    """The critic's prompt, one user turn; None where the response has no visible step.

    It shows the question, the reference answer and solution as far as the example has them, and
    the attempt, the last two without their think blocks.
    """
    attempt = strip_thinking(rollout.text)
    if not attempt:
        return None
    parts = [_block("problem", _question(example.prompt))]
    if example.answer:
        parts.append(_block("reference answer", example.answer.strip()))
    solution = strip_thinking(example.solution or "")
    if solution:
        parts.append(_block("reference solution", solution))
    parts += [_block(ATTEMPT, attempt), INSTRUCTION]
    return [{"role": "user", "content": "\n\n".join(parts)}]


def _block(label: str, text: str) -> str:
    return f"{_fence(label)}\n{text}\n{_fence_end(label)}"


def _fence(label: str) -> str:
    return f"[{label}]"


def _fence_end(label: str) -> str:
    return f"[end of {label}]"


def _question(prompt: Sequence[Message]) -> str:
    turns = [message for message in prompt if message["role"] != "system"]
    if len(turns) == 1:
        return turns[0]["content"].strip()
    return "\n".join(f"{message['role']}: {message['content'].strip()}" for message in turns)


def usable_critique(text: str) -> str | None:
    """The critique to show, or None where `text` is of no use.

    Think blocks are taken off, and so is the fence of the attempt with what follows it, which small
    models copy. Of no use is a reply that is then empty, has no letter or digit, is more than a
    tenth unprintable, or says one sentence or line more often than all others together (counted
    from six on).
    """
    critique = strip_thinking(text).removeprefix(_fence(ATTEMPT)).split(_fence_end(ATTEMPT))[0]
    critique = critique.strip()
    if not any(character.isalnum() for character in critique):
        return None
    odd = sum(
        1
        for character in critique
        if character == "\ufffd" or not (character.isprintable() or character.isspace())
    )
    if odd > len(critique) / 10:
        return None
    parts = [part.strip() for part in re.split(r"[.!?]\s|\n", critique) if part.strip()]
    if len(parts) >= 6 and Counter(parts).most_common(1)[0][1] > len(parts) / 2:
        return None
    return critique


class CachedCritic(ABC):
    """What critics share: prompt, cache, and judging the reply.

    `counts` collects rows: `asked`, `cached`, `cut` (by the token limit, still used), `unusable`
    (no critique; includes `no_attempt` and `too_long`, whose prompt does not fit the model).
    """

    def __init__(self, cache_dir: str | Path | None = None) -> None:
        self.counts: Counter[str] = Counter()
        self._cache = None if cache_dir is None else DiskCache(cache_dir)

    @abstractmethod
    def _identity(self) -> dict[str, Any]:
        """Model and settings: what the reply depends on besides the prompt."""

    @abstractmethod
    def _ask(self, prompts: Sequence[list[Message]]) -> Iterator[tuple[int, Reply | None]]:
        """Yield (index of prompt, reply) as they come; None for a prompt that does not fit."""

    def critique(self, pairs: Sequence[tuple[Example, Rollout]]) -> list[str | None]:
        """One correction per (example, rollout), None where there is no usable one (counted).

        Each reply is in the cache before the next one is waited for, so that an error or Ctrl-C
        loses none that is done.
        """
        prompts = [critique_messages(example, rollout) for example, rollout in pairs]
        identity = self._identity()
        keys = [content_key([identity, messages]) for messages in prompts]
        replies: dict[str, Reply | None] = {}
        todo: dict[str, list[Message]] = {}
        for key, messages in zip(keys, prompts, strict=True):
            if messages is None or key in todo or key in replies:
                continue
            known = self._cached(key)
            if known is None:
                todo[key] = messages
            else:
                replies[key] = known
                self.counts["cached"] += 1
        self.counts["asked"] += len(todo)
        open_keys = list(todo)
        for index, reply in self._ask(list(todo.values())):
            key = open_keys[index]
            replies[key] = reply
            if reply is not None and self._cache is not None:
                self._cache.put(key, {"text": reply.text, "cut": reply.cut})
        return [
            self._judge(messages, replies.get(key))
            for key, messages in zip(keys, prompts, strict=True)
        ]

    def _cached(self, key: str) -> Reply | None:
        entry = self._cache.get(key) if self._cache is not None else None
        if entry is None or not isinstance(entry.get("text"), str):
            return None
        return Reply(entry["text"], bool(entry.get("cut")))

    def _judge(self, messages: list[Message] | None, reply: Reply | None) -> str | None:
        critique = None
        if messages is None:
            self.counts["no_attempt"] += 1
        elif reply is None:
            self.counts["too_long"] += 1
        else:
            self.counts["cut"] += reply.cut
            critique = usable_critique(reply.text)
        if critique is None:
            self.counts["unusable"] += 1
            logger.debug("no usable critique for a row (%d so far)", self.counts["unusable"])
        return critique
