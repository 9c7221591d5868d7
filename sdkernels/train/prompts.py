"""Conversations to token ids, and the boundary between prompt and response.

Student and teacher see different prompts but the same response ids, so what stands directly before
the response (the generation prompt, think tags included) has to be the same on both sides;
otherwise the first tokens are compared across two formats (siyan-zhao/OPSD issue 10).
"""

from __future__ import annotations

import json
import logging
import re
from difflib import get_close_matches
from typing import Any

from sdkernels.contexts.types import Example, Message

logger = logging.getLogger(__name__)

CACHED_PROMPTS = 4096
# What a template reads besides switches: ours to give, or functions that transformers adds.
NOT_SWITCHES = {"messages", "add_generation_prompt", "raise_exception", "strftime_now"}


class PromptEncoder:
    """Renders messages with a tokenizer's chat template.

    Args:
        tokenizer: with a chat template.
        template_kwargs: extra arguments of the template, e.g. `{"enable_thinking": False}`.
        setting: what messages call them.

    Raises:
        ValueError: one of `template_kwargs` is read by nothing in the template.
    """

    def __init__(
        self,
        tokenizer: Any,
        template_kwargs: dict[str, Any] | None = None,
        *,
        setting: str = "chat_template_kwargs",
    ) -> None:
        self.tokenizer = tokenizer
        self.template_kwargs = dict(template_kwargs or {})
        if self.template_kwargs:
            _check_switches(tokenizer, self.template_kwargs, setting)
        self._cache: dict[str, list[int]] = {}

    def text(self, messages: list[Message], *, generation_prompt: bool = True) -> str:
        """The prompt as text, up to where the response begins."""
        return str(
            self.tokenizer.apply_chat_template(
                messages,
                tokenize=False,
                add_generation_prompt=generation_prompt,
                **self.template_kwargs,
            )
        )

    def ids(self, messages: list[Message]) -> list[int]:
        """The prompt as token ids. Special tokens come from the template only, never twice."""
        key = json.dumps(messages)
        if key not in self._cache:
            if len(self._cache) >= CACHED_PROMPTS:
                self._cache.clear()
            self._cache[key] = self.tokenizer(self.text(messages), add_special_tokens=False)[
                "input_ids"
            ]
        return list(self._cache[key])

    def boundary(self, messages: list[Message]) -> str:
        """What the template puts between the last turn and the response, e.g.
        `<|im_start|>assistant`.
        """
        with_prompt = self.text(messages)
        without = self.text(messages, generation_prompt=False)
        return with_prompt[len(without) :] if with_prompt.startswith(without) else with_prompt[-64:]


def template_switches(template: str) -> set[str]:
    """Names that a chat template (Jinja) takes from outside, but for the conversation itself."""
    from jinja2 import Environment, meta

    # The tags of transformers' own extension mark the answers and read nothing.
    plain = re.sub(r"\{%[-+]?\s*(end)?generation\s*[-+]?%\}", "", template)
    parsed = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(plain)
    return meta.find_undeclared_variables(parsed) - NOT_SWITCHES


def _check_switches(tokenizer: Any, template_kwargs: dict[str, Any], setting: str) -> None:
    """A switch that the template does not read would be passed over in silence."""
    chosen = {name: template_kwargs.get(name) for name in ("chat_template", "tools")}
    known = sorted(template_switches(tokenizer.get_chat_template(**chosen)))
    for name in template_kwargs:
        if name in known or name == "chat_template":
            continue
        near = get_close_matches(name, known, n=1)
        hint = f" (did you mean {near[0]!r}?)" if near else ""
        raise ValueError(
            f"{setting}={template_kwargs!r}: {name!r}{hint} has no effect, this chat template does "
            f"not read it; expected {' or '.join(known) if known else 'nothing, it has no switch'}"
        )


def check_boundary(student: PromptEncoder, teacher: PromptEncoder, messages: list[Message]) -> None:
    """Refuse templates that end the student's and the teacher's prompt differently.

    A pairing on purpose (thinking on for one side only) is stated by giving the teacher its own
    `teacher_chat_template_kwargs`, and then allowed and logged.

    Raises:
        ValueError: the two boundaries differ without such a pairing, or a pairing is stated that
            the chat template knows nothing of.
    """
    ours, theirs = student.boundary(messages), teacher.boundary(messages)
    if student.template_kwargs != teacher.template_kwargs:
        if student.text(messages) == teacher.text(messages):
            raise ValueError(
                f"teacher_chat_template_kwargs={teacher.template_kwargs!r} has no effect: with the "
                f"student's {student.template_kwargs!r} this chat template gives the same prompt; "
                "leave it out, or check the names of the switches (Qwen3: enable_thinking)"
            )
        if ours != theirs:
            logger.info(
                "Pairing: the student's prompt ends in %r, the teacher's in %r; the first response "
                "tokens are scored across the two (skip_first_tokens leaves them out).",
                ours,
                theirs,
            )
    if ours != theirs and student.template_kwargs == teacher.template_kwargs:
        raise ValueError(
            f"the student's prompt ends in {ours!r}, the teacher's in {theirs!r}, so the first "
            "response tokens would be "
            "compared across two formats; give both the same chat template, or state the pairing "
            "with "
            "teacher_chat_template_kwargs"
        )


def where(example: Example) -> str:
    """How to name an example in a message: its id, and the row it came from where that is known."""
    row = example.metadata.get("row") if example.metadata else None
    return f"example {example.id!r}" + (f" ({row})" if row is not None else "")


def check_prompt_length(example: Example, num_tokens: int, limit: int) -> None:
    """Raise a `ValueError` that names the example if its prompt is too long."""
    if num_tokens > limit:
        raise ValueError(
            f"{where(example)}: its prompt has {num_tokens} tokens, max_prompt_length allows "
            f"{limit}; raise "
            "max_prompt_length or leave the example out"
        )
