"""Contexts whose text a model writes first: what it is asked, and what becomes of its answer."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from sdkernels.contexts.compose import Privileged, Section, compose
from sdkernels.contexts.critic import problem_blocks
from sdkernels.contexts.quotes import find_quote, read_tag
from sdkernels.contexts.registry import register
from sdkernels.contexts.thinking import strip_thinking
from sdkernels.contexts.types import Example, Message, Rollout, Services
from sdkernels.contexts.words import (
    clean,
    group_of_siblings,
    pick,
    privileged,
    shown,
    sibling_section,
    siblings,
    solution_section,
    succeeded,
)

logger = logging.getLogger(__name__)

EXPLAIN = (
    "Do not solve the problem again. Explain the solution above instead: which idea it rests on, "
    "what each step is for, and where one could go wrong."
)
REFLECT_ON_ERROR = """\
Above is a problem with its reference, and an attempt that is not correct. Find where the attempt \
first goes wrong. Answer in exactly this form:
<quote>the words of the attempt in which the first error stands, copied character by character, \
at most one sentence</quote>
<why>what is wrong there, and the idea that leads further, without the final answer</why>"""
REFLECT_ON_SUCCESS = """\
Above is a problem with its reference, and an attempt that is correct. Answer in exactly this form:
<why>the idea that makes the attempt work, without the final answer</why>"""


def _needs_of_regeneration(settings: Mapping[str, Any]) -> tuple[str, ...]:
    return ("solution",) if settings["of"] == "reference" else ("answer",)


def _group_of_regeneration(settings: Mapping[str, Any]) -> int:
    return 1 if settings["of"] == "reference" else group_of_siblings(settings)


def _regeneration_reads_responses(settings: Mapping[str, Any]) -> bool:
    return bool(settings["of"] == "sibling")


def _ask_for_regeneration(
    example: Example,
    rollout: Rollout,
    group: Sequence[Rollout],
    services: Services,
    *,
    of: str,
    choose: str,
    allow_self: bool,
    seed: int,
    **_: Any,
) -> list[Message] | None:
    if of == "reference":
        seen = shown(solution_section(clean(example.solution, services.tokenizer)))
    else:
        found = siblings(
            rollout,
            group,
            "regeneration",
            tokenizer=services.tokenizer,
            success=True,
            allow_self=allow_self,
        )
        chosen = pick(found, choose, seed=seed, example=example, rollout=rollout)
        seen = (
            None
            if chosen is None
            else privileged(sibling_section(clean(chosen.text, services.tokenizer)))
        )
    return None if seen is None else _composed(example, seen, services)


@register(
    "regeneration",
    summary="A response that a model wrote while it saw a correct solution.",
    source="2603.24472 section 3 (c = regenerated solution)",
    made_of="model",
    reads_responses=_regeneration_reads_responses,
    ask=_ask_for_regeneration,
    needs=_needs_of_regeneration,
    least_group=_group_of_regeneration,
    leaks_answer=True,
    on_empty="nothing to see for the writer, or an empty answer (counted): weight 0",
    thinking="setting `thinking`: kept by default; what the writer sees is not stripped",
)
def regeneration(
    example: Example,
    rollout: Rollout,
    group: Sequence[Rollout],
    services: Services,
    reply: str,
    *,
    of: Literal["reference", "sibling"] = "reference",
    choose: Literal["first", "random", "shortest"] = "first",
    thinking: Literal["keep", "strip"] = "keep",
    allow_self: bool = False,
    seed: int = 0,
) -> Privileged | None:
    """The writer's own response after it saw the reference solution or a correct sibling.

    It is shown in the words of `reference_solution`, and is not verified (nor was it in the paper,
    where 95 % were correct).
    """
    return shown(solution_section(clean(reply, services.tokenizer, thinking)))


def _ask_for_analysis(
    example: Example,
    rollout: Rollout,
    group: Sequence[Rollout],
    services: Services,
    *,
    thinking: str,
) -> list[Message] | None:
    text = clean(example.solution, services.tokenizer, thinking)
    if not text:
        return None
    return _composed(example, Privileged((solution_section(text),), EXPLAIN), services)


@register(
    "rationalise",
    summary="The reference solution, and an analysis of it that a model wrote first.",
    source="OPSD 2601.18734 (reason first)",
    made_of="model",
    reads_responses=False,
    ask=_ask_for_analysis,
    needs=("solution",),
    leaks_answer=True,
    order="question, reference solution, analysis, closing instruction",
    truncation="right, the longer of solution and analysis first",
    on_empty="no solution, or an empty analysis (counted): weight 0",
    thinking="of the solution: setting `thinking`, kept by default; of the analysis: stripped",
)
def rationalise(
    example: Example,
    rollout: Rollout,
    group: Sequence[Rollout],
    services: Services,
    reply: str,
    *,
    thinking: Literal["keep", "strip"] = "keep",
) -> Privileged | None:
    """Reference and analysis in the user turn (OPSD's code puts the analysis before the response,
    in the assistant's turn; here the boundary before the response stays the student's).
    """
    analysis = clean(reply, services.tokenizer, "strip")
    if not analysis:
        return None
    return privileged(
        solution_section(clean(example.solution, services.tokenizer, thinking)),
        Section("This is an analysis of that solution:", "analysis", analysis),
    )


def _ask_for_reflection(
    example: Example,
    rollout: Rollout,
    group: Sequence[Rollout],
    services: Services,
    *,
    need_success: bool,
) -> list[Message] | None:
    attempt = clean(rollout.text, services.tokenizer, "strip")
    right = siblings(
        rollout,
        group,
        "self_reflection",
        tokenizer=services.tokenizer,
        success=True,
        thinking="strip",
    )
    if not attempt or (need_success and not right and not rollout.success):
        return None
    correct = clean(right[0].text, services.tokenizer, "strip") if right else ""
    blocks = problem_blocks(example, attempt=attempt, correct=correct, tokenizer=services.tokenizer)
    instruction = REFLECT_ON_SUCCESS if succeeded(rollout, "self_reflection") else REFLECT_ON_ERROR
    return [{"role": "user", "content": "\n\n".join([*blocks, instruction])}]


@register(
    "self_reflection",
    summary="Why the response fails or works, and where it first goes wrong.",
    source="ROSD 2605.28014 (explanation as key idea, exact error quote for the suffix mask)",
    made_of="model",
    ask=_ask_for_reflection,
    needs=("answer",),
    order="question, explanation, closing instruction",
    on_empty="empty response, with need_success a group without success, or no explanation "
    "(counted): weight 0",
    thinking="stripped from all that the reflecting model sees and writes",
)
def self_reflection(
    example: Example,
    rollout: Rollout,
    group: Sequence[Rollout],
    services: Services,
    reply: str,
    *,
    need_success: bool = True,
) -> Privileged | None:
    """The explanation without the solution; for a wrong response also the quote of its first error.

    The reflecting model sees the question, the reference as far as there is one, a correct sibling
    and the attempt. A quote that the response does not contain is counted (`quote_not_found`).
    ROSD reflects with the student as it is trained; here it is `services.writer`.
    """
    visible = strip_thinking(reply)
    explanation = clean(read_tag(visible, "why"), services.tokenizer)
    if not explanation:
        services.counts["unusable_reflection"] += 1
        return None
    quote = None
    if not rollout.success:
        quote = find_quote(read_tag(visible, "quote"), rollout.text)
        if quote is None:
            services.counts["quote_not_found"] += 1
            logger.debug("rollout %d of %r does not contain the quote", rollout.index, example.id)
    return replace(
        privileged(Section("This is the key idea for this problem:", "key idea", explanation)),
        error_quote=quote,
    )


def _composed(example: Example, seen: Privileged, services: Services) -> list[Message]:
    # No count: what is cut here is not the teacher's prompt.
    return compose(
        example.prompt, seen, tokenizer=services.tokenizer, max_tokens=services.max_context_tokens
    )
