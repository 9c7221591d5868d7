"""Models that answer prompts, with their replies cached on disk.

A reply is kept under a hash of the model, the prompt and the settings.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdkernels.contexts.cache import DiskCache, content_key
from sdkernels.contexts.compose import content_without_special_tokens
from sdkernels.contexts.types import Message


@dataclass(frozen=True)
class Reply:
    """What a model wrote. `cut`: the token limit ended it."""

    text: str
    cut: bool = False


class CachedWriter(ABC):
    """What writers share: clean prompts, and the cache in front of the model.

    With a `tokenizer` its control tokens are taken out of the prompts, because a problem, a
    solution or a response that holds one would end the user turn early.

    `counts` collects rows: `asked`, `cached`, `cut` (by the token limit, still used) and
    `too_long` (the prompt does not fit the model).
    """

    def __init__(self, cache_dir: str | Path | None = None, tokenizer: Any = None) -> None:
        self.counts: Counter[str] = Counter()
        self.tokenizer = tokenizer
        self._cache = None if cache_dir is None else DiskCache(cache_dir)

    @abstractmethod
    def _identity(self) -> dict[str, Any]:
        """Model and settings: what the reply depends on besides the prompt."""

    @abstractmethod
    def _ask(self, prompts: Sequence[list[Message]]) -> Iterator[tuple[int, Reply | None]]:
        """Yield (index of prompt, reply) as they come; None for a prompt that does not fit."""

    def write(self, prompts: Sequence[list[Message]]) -> list[str | None]:
        """One answer per conversation, in order; None where it does not fit the model (counted)."""
        return [None if reply is None else reply.text for reply in self.reply_to(prompts)]

    def reply_to(self, prompts: Sequence[list[Message] | None]) -> list[Reply | None]:
        """One reply per prompt, in order; None where the prompt is None or does not fit the model.

        Equal prompts are asked once. Each reply is in the cache before the next one is waited for,
        so that an error or Ctrl-C loses none that is done.
        """
        identity = self._identity()
        prompts = [None if messages is None else self._clean(messages) for messages in prompts]
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
        rows = [replies.get(key) for key in keys]
        for messages, reply in zip(prompts, rows, strict=True):
            if reply is not None:
                self.counts["cut"] += reply.cut
            elif messages is not None:
                self.counts["too_long"] += 1
        return rows

    def _clean(self, messages: list[Message]) -> list[Message]:
        return [
            {
                **message,
                "content": content_without_special_tokens(message["content"], self.tokenizer),
            }
            for message in messages
        ]

    def _cached(self, key: str) -> Reply | None:
        entry = self._cache.get(key) if self._cache is not None else None
        if entry is None or not isinstance(entry.get("text"), str):
            return None
        return Reply(entry["text"], bool(entry.get("cut")))
