"""Frozen critics that correct a student's attempt step by step (2606.11173).

The critic copies the steps that are right word for word and edits only the wrong ones, so that the
teacher's evidence falls on the error and not on the whole response.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

from sdkernels.contexts.thinking import strip_thinking
from sdkernels.contexts.types import Example, Message, Rollout
from sdkernels.contexts.words import clean
from sdkernels.contexts.writer import CachedWriter

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


def critique_messages(
    example: Example, rollout: Rollout, tokenizer: Any = None
) -> list[Message] | None:
    """The critic's prompt, one user turn; None where the response has no visible step.

    It shows the question, the reference answer and solution as far as the example has them, and
    the attempt, the last two without their think blocks.
    """
    attempt = clean(rollout.text, tokenizer, "strip")
    if not attempt:
        return None
    parts = [*problem_blocks(example, attempt=attempt, tokenizer=tokenizer), INSTRUCTION]
    return [{"role": "user", "content": "\n\n".join(parts)}]


def problem_blocks(
    example: Example, *, attempt: str, correct: str = "", tokenizer: Any = None
) -> list[str]:
    """Question, reference answer and solution as far as the example has them, a correct response
    where there is one, and the attempt, each in its fence. Think blocks of the solution are left
    out.
    """
    blocks = [
        _block("problem", _question(example.prompt)),
        _block("reference answer", clean(example.answer, tokenizer)),
        _block("reference solution", clean(example.solution, tokenizer, "strip")),
        _block("correct response", correct),
        _block(ATTEMPT, attempt),
    ]
    return [block for block in blocks if block]


def _block(label: str, text: str) -> str:
    return f"{_fence(label)}\n{text}\n{_fence_end(label)}" if text else ""


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


class CachedCritic(CachedWriter):
    """What critics share: the prompt, and judging the reply.

    `counts` also collects rows without critique: `unusable` (which includes `no_attempt` and those
    that are `too_long`).
    """

    def critique(self, pairs: Sequence[tuple[Example, Rollout]]) -> list[str | None]:
        """One correction per (example, rollout), None where there is no usable one (counted)."""
        prompts = [
            critique_messages(example, rollout, self.tokenizer) for example, rollout in pairs
        ]
        if missing := prompts.count(None):
            self.counts["no_attempt"] += missing
        replies = self.reply_to(prompts)
        critiques = [None if reply is None else usable_critique(reply.text) for reply in replies]
        if unusable := critiques.count(None):
            self.counts["unusable"] += unusable
            logger.debug("no usable critique for %d of %d rows", unusable, len(pairs))
        return critiques
