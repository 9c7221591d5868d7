"""Teacher prompts: the privileged part, its place in the prompt, and its length limit.

The last user turn becomes: question, one fenced section per piece of privileged text, closing
instruction. System messages and earlier turns stay as they are, unless the question is left out.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Section:
    """A piece of privileged text: `intro` announces it, `label` names its fence."""

    intro: str
    label: str
    text: str

    def render(self) -> str:
        """The section as it stands in the prompt."""
        return f"{self.intro}\n[{self.label}]\n{self.text}\n[end of {self.label}]"


@dataclass(frozen=True)
class Privileged:
    """What a builder adds to the prompt. Without sections and closing the prompt stays as it is.

    Without `question` the earlier turns and the question go, system messages stay. `negatives` are
    the other sides of a contrast, and `error_quote` the words of the response where it first goes
    wrong.
    """

    sections: tuple[Section, ...] = ()
    closing: str = ""
    question: bool = True
    negatives: tuple[Privileged, ...] = ()
    error_quote: str | None = None


def compose(
    prompt: Sequence[dict[str, str]],
    privileged: Privileged,
    *,
    tokenizer: Any = None,
    max_tokens: int | None = None,
    counts: Counter[str] | None = None,
) -> list[dict[str, str]]:
    """The teacher's messages: `prompt` with the privileged part in its last user turn.

    `max_tokens` bounds the tokens of the section texts together; what is cut is replaced by a
    visible marker and counted as `counts["truncated"]`.
    """
    messages = [dict(message) for message in prompt]
    if not privileged.sections and not privileged.closing:
        return messages
    sections = tuple(
        replace(section, text=without_special_tokens(section.text, tokenizer).strip())
        for section in privileged.sections
    )
    if max_tokens is not None and sections:
        sections, cut = fit(sections, tokenizer, max_tokens)
        if cut and counts is not None:
            counts["truncated"] += 1
    parts = [messages[-1]["content"].rstrip()]
    if not privileged.question:
        messages = [m for m in messages[:-1] if m["role"] == "system"] + messages[-1:]
        parts = []
    parts += [section.render() for section in sections]
    parts.append(privileged.closing)
    messages[-1]["content"] = "\n\n".join(parts)
    return messages


def without_special_tokens(text: str, tokenizer: Any) -> str:
    """`text` without the tokenizer's control tokens, which would end the user turn early."""
    tokens = [token for token in getattr(tokenizer, "all_special_tokens", None) or () if token]
    before = None
    while before != text:  # again, because taking one out can join the halves of another
        before = text
        for token in tokens:
            text = text.replace(token, "")
    return text


def content_without_special_tokens(content: Any, tokenizer: Any) -> Any:
    """A message's `content` without control tokens: text, or a list of parts (`{"type": "text",
    "text": ...}`), whose texts are cleaned. What has no text stays: images, None next to calls of
    tools.
    """
    if isinstance(content, str):
        return without_special_tokens(content, tokenizer)
    if isinstance(content, list):
        return [content_without_special_tokens(part, tokenizer) for part in content]
    if isinstance(content, dict) and isinstance(content.get("text"), str):
        return {**content, "text": without_special_tokens(content["text"], tokenizer)}
    return content


def count_tokens(text: str, tokenizer: Any) -> int:
    """Tokens of `text` on its own, without special tokens."""
    return len(tokenizer(text, add_special_tokens=False)["input_ids"])


def fit(
    sections: Sequence[Section], tokenizer: Any, max_tokens: int
) -> tuple[tuple[Section, ...], bool]:
    """Cut the ends of the sections, the longest first, until together they fit `max_tokens`.

    Cut sections come out equally long, so that none vanishes while another stays whole; a rest that
    does not divide goes to the shortest.

    Returns the sections and whether anything was cut. The marker that replaces a cut text is not
    counted against the limit.
    """
    if tokenizer is None:
        raise ValueError("max_context_tokens needs a tokenizer: pass Services(tokenizer=...)")
    if max_tokens < 1:
        raise ValueError(f"max_context_tokens must be at least 1, got {max_tokens}")
    lengths = [count_tokens(section.text, tokenizer) for section in sections]
    fitted = list(sections)
    left = max_tokens
    for done, index in enumerate(sorted(range(len(fitted)), key=lambda i: lengths[i])):
        keep = min(lengths[index], -(-left // (len(fitted) - done)))
        left -= keep
        dropped = lengths[index] - keep
        if dropped == 0:
            continue
        text = _keep_first_tokens(fitted[index].text, keep, tokenizer)
        marker = f"[... cut here, {dropped} more tokens]"
        fitted[index] = replace(fitted[index], text=f"{text.rstrip()}\n{marker}".lstrip())
        logger.info("cut %d tokens off the end of the %s", dropped, fitted[index].label)
    return tuple(fitted), sum(lengths) > max_tokens


def _keep_first_tokens(text: str, keep: int, tokenizer: Any) -> str:
    if keep == 0:
        return ""
    if getattr(tokenizer, "is_fast", False):
        # Cutting at a character offset, because decoding half a character gives garbage.
        encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        return text[: encoded["offset_mapping"][keep - 1][1]]
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    return str(tokenizer.decode(ids[:keep]))
