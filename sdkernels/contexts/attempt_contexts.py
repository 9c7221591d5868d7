"""Contexts made of the response itself: feedback, the failed attempt, its corrected steps."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from typing import Literal

from sdkernels.contexts.compose import Privileged, Section
from sdkernels.contexts.registry import register
from sdkernels.contexts.thinking import strip_thinking
from sdkernels.contexts.types import Example, Rollout, Services
from sdkernels.contexts.words import (
    WAS_WRONG,
    clean,
    feedback_of,
    feedback_section,
    privileged,
    succeeded,
)

logger = logging.getLogger(__name__)

AFTER_RIGHT = (
    "This response was checked, and it is correct. Now say the same again in clear words of your "
    "own, step by step, in the form that the problem asks for."
)
AFTER_WRONG = (
    "Wait, this response was checked, and it is not correct. Start over, and solve the problem "
    "step by step, in the form that it asks for."
)


@register(
    "verifier_feedback",
    summary="What the verifier said about the student's own response.",
    source="SDPO 2601.20802 section 4 (environment feedback)",
    made_of="attempt",
    needs=("answer|feedback",),
    on_empty="no feedback, or a correct response with on='failed': weight 0",
)
def verifier_feedback(
    example: Example,
    rollout: Rollout,
    group: Sequence[Rollout],
    services: Services,
    *,
    on: Literal["failed", "all"] = "failed",
) -> Privileged | None:
    """The rollout's feedback, or where the verifier left none, the example's own.

    `on="failed"` gives correct responses no signal; `on="all"` tells them that they are correct.
    """
    feedback = feedback_of(rollout, example, services.tokenizer)
    if not feedback or (on == "failed" and rollout.success):
        return None
    return privileged(feedback_section(feedback))


@register(
    "failed_attempt",
    summary="The student's own failed response, and what the verifier said about it.",
    source="SDPO 2601.20802 table 6 (output + own attempt; it lowers diversity)",
    made_of="attempt",
    needs=("answer",),
    order="question, attempt, feedback, closing instruction",
    truncation="right, the longer of attempt and feedback first",
    on_empty="a correct response, or nothing left of it: weight 0",
    thinking="setting `thinking`: stripped by default",
)
def failed_attempt(
    example: Example,
    rollout: Rollout,
    group: Sequence[Rollout],
    services: Services,
    *,
    thinking: Literal["keep", "strip"] = "strip",
) -> Privileged | None:
    """The rollout itself if it failed, with its feedback."""
    attempt = clean(rollout.text, services.tokenizer, thinking)
    if succeeded(rollout, "failed_attempt") or not attempt:
        return None
    return privileged(
        Section("Here is an earlier attempt at this problem:", "failed attempt", attempt),
        Section(
            "It got this feedback:",
            "feedback",
            feedback_of(rollout, example, services.tokenizer) or WAS_WRONG,
        ),
    )


@register(
    "reward_phrase",
    summary="The student's own response and a phrase that depends on its reward.",
    source="SD-Zero 2604.12002 (say it again if right, start over if wrong)",
    made_of="attempt",
    needs=("answer",),
    leaks_answer=True,
    order="question, response, phrase",
    on_empty="nothing left of the response: weight 0",
    thinking="setting `thinking`: kept by default",
)
def reward_phrase(
    example: Example,
    rollout: Rollout,
    group: Sequence[Rollout],
    services: Services,
    *,
    thinking: Literal["keep", "strip"] = "keep",
) -> Privileged | None:
    """The rollout itself, right or wrong; the phrase stands in place of the closing instruction."""
    text = clean(rollout.text, services.tokenizer, thinking)
    if not text:
        return None
    section = Section("Here is your earlier response to this problem:", "earlier response", text)
    right = succeeded(rollout, "reward_phrase")
    return Privileged((section,), AFTER_RIGHT if right else AFTER_WRONG)


@register(
    "step_critique",
    summary="The student's own steps, corrected one by one by a frozen critic.",
    source="2606.11173 (StepAlignFB: step-aligned feedback)",
    made_of="model",
    needs=("answer|solution",),
    leaks_answer=True,
    generates=True,
    on_empty="empty response, no usable critique, or with unaligned='skip' one that copies no "
    "step (all counted): weight 0",
    thinking="stripped from the attempt and from the critique",
)
def step_critique(
    example: Example,
    rollout: Rollout,
    group: Sequence[Rollout],
    services: Services,
    *,
    unaligned: Literal["keep", "skip"] = "keep",
) -> Privileged | None:
    """Correct steps word for word, wrong or incomplete ones edited, as `services.critic` says.

    A critique that copies no step of an attempt of two or more is not aligned with it: it works as
    a reference solution does. It is counted (`unaligned_critique`), and shown only with
    `unaligned="keep"`.
    """
    if services.critic is None:
        raise ValueError(
            "context 'step_critique' needs a critic: pass Services(critic=LocalCritic(...)) or "
            "Services(critic=ServerCritic(...))"
        )
    critique = clean(services.critic.critique([(example, rollout)])[0], services.tokenizer)
    if not critique:
        services.counts["unusable_critique"] += 1
        return None
    if copied_share(rollout.text, critique) == 0:
        services.counts["unaligned_critique"] += 1
        logger.info(
            "the critique of rollout %d of example %r copies none of its steps%s",
            rollout.index,
            example.id,
            ": weight 0" if unaligned == "skip" else "",
        )
        if unaligned == "skip":
            return None
    return privileged(
        Section(
            "Here is an earlier attempt at this problem after a review. Steps that were right "
            "stand as they were written, the others are corrected:",
            "reviewed attempt",
            critique,
        )
    )


def copied_share(attempt: str, critique: str) -> float:
    """Share of the attempt's steps that stand in the critique word for word.

    A step is a line, or a sentence where all stands in one line, of the visible part; tags of steps
    alone on their line and lines without a letter or digit are none. An attempt of less than two
    steps has no order to keep, and counts as copied.
    """
    ours = _steps(strip_thinking(attempt))
    if len(ours) < 2:
        return 1.0
    theirs = set(_steps(critique))
    return sum(step in theirs for step in ours) / len(ours)


def _steps(text: str) -> list[str]:
    lines = [line for line in text.splitlines() if line.strip()]
    parts = lines if len(lines) > 1 else re.split(r"(?<=[.!?])\s+", text)
    steps = [" ".join(re.sub(r"</?step[^<>]*>", " ", part).split()) for part in parts]
    return [step for step in steps if any(character.isalnum() for character in step)]
