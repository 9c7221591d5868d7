"""The context conditions of the literature, one builder each.

All of them share one wrapper (`compose`) and one closing instruction, so that two conditions differ
in what the teacher knows and in nothing else. The wording is ours; Hübotter et al. (SDPO,
2601.20802) found the loss insensitive to it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Literal

from sdkernels.contexts.compose import Privileged, Section
from sdkernels.contexts.registry import register
from sdkernels.contexts.thinking import strip_thinking
from sdkernels.contexts.types import Example, Rollout, Services

CLOSING = (
    "Keep this in mind and now solve the problem above yourself, step by step, "
    "in the form it asks for."
)
WAS_WRONG = "The final answer of this attempt was checked, and it is not correct."


def _privileged(*sections: Section) -> Privileged:
    return Privileged(sections, CLOSING)


def _succeeded(rollout: Rollout, context: str) -> bool:
    if rollout.success is None:
        raise ValueError(
            f"context {context!r} needs to know which responses are correct, but rollout "
            f"{rollout.index} of example {rollout.example_id!r} has success=None: verify it first"
        )
    return rollout.success


def _text(value: str | None, thinking: str = "keep") -> str:
    text = value or ""
    return strip_thinking(text) if thinking == "strip" else text.strip()


@register(
    "none",
    summary="The student's own prompt: the teacher knows nothing more (binary reward alone).",
    source="2603.24472 section 3 (empty context); control of every method",
    order="question",
    truncation="nothing to cut",
)
def none(
    example: Example, rollout: Rollout, group: Sequence[Rollout], services: Services
) -> Privileged:
    """Messages equal to the student's prompt, so an equal teacher gives a gap of exactly 0."""
    return Privileged()


@register(
    "final_answer",
    summary="The final answer only, without a derivation.",
    source="RLSD 2604.03128, CEPO 2605.19436 (gold answer); OPSD_Analysis (verified answer)",
    needs=("answer",),
    leaks_answer=True,
    on_empty="no answer: weight 0",
)
def final_answer(
    example: Example, rollout: Rollout, group: Sequence[Rollout], services: Services
) -> Privileged | None:
    """The reference answer of the example."""
    answer = _text(example.answer)
    if not answer:
        return None
    return _privileged(Section("The final answer is known:", "known answer", answer))


@register(
    "reference_solution",
    summary="A complete reference solution, its thinking included.",
    source="OPSD 2601.18734 section 3; 2603.24472 section 3 (c = s); RefSol of 2606.11173",
    needs=("solution",),
    leaks_answer=True,
    on_empty="no solution: weight 0",
    thinking="kept",
)
def reference_solution(
    example: Example, rollout: Rollout, group: Sequence[Rollout], services: Services
) -> Privileged | None:
    """The reference solution as the data set has it."""
    return _solution(_text(example.solution))


@register(
    "reference_without_thinking",
    summary="The reference solution with its think block removed.",
    source="2603.24472 section 3 (c = s without think)",
    needs=("solution",),
    leaks_answer=True,
    on_empty="no solution, or nothing but thinking in it: weight 0",
    thinking="stripped, with everything before a lone closing tag",
)
def reference_without_thinking(
    example: Example, rollout: Rollout, group: Sequence[Rollout], services: Services
) -> Privileged | None:
    """The reference solution without its thinking, under the same words as with it."""
    return _solution(_text(example.solution, "strip"))


def _solution(text: str) -> Privileged | None:
    if not text:
        return None
    return _privileged(
        Section("Here is a correct solution for reference:", "reference solution", text)
    )


@register(
    "sibling_solution",
    summary="A verified correct response of the student to the same problem.",
    source="SDPO 2601.20802 section 3; AntiSD 2605.11609; RLCSD 2606.11709",
    leaks_answer=True,
    on_empty="no other correct response in the group: weight 0",
    thinking="setting `thinking`: kept by default",
)
def sibling_solution(
    example: Example,
    rollout: Rollout,
    group: Sequence[Rollout],
    services: Services,
    *,
    choose: Literal["first", "random", "shortest"] = "first",
    thinking: Literal["keep", "strip"] = "keep",
    allow_self: bool = False,
    seed: int = 0,
) -> Privileged | None:
    """A correct rollout of the group: the first by index, one at random, or the shortest.

    The random choice depends on `seed`, the example and the rollout only.
    """
    siblings = [
        other
        for other in sorted(group, key=lambda other: other.index)
        if _succeeded(other, "sibling_solution")
        and (allow_self or other.index != rollout.index)
        and _text(other.text, thinking)
    ]
    if not siblings:
        return None
    chosen = siblings[0]
    if choose == "random":
        key = f"{seed}/{example.id}/{rollout.index}/{rollout.text}"
        chosen = random.Random(key).choice(siblings)
    elif choose == "shortest":
        chosen = min(siblings, key=lambda other: len(other.token_ids))
    return _privileged(
        Section(
            "Here is an earlier response to this problem that was checked and is correct:",
            "correct response",
            _text(chosen.text, thinking),
        )
    )


@register(
    "verifier_feedback",
    summary="What the verifier said about the student's own response.",
    source="SDPO 2601.20802 section 4 (environment feedback)",
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
    feedback = _text(rollout.feedback) or _text(example.feedback)
    if not feedback or (on == "failed" and rollout.success):
        return None
    return _privileged(
        Section("An earlier attempt at this problem got this feedback:", "feedback", feedback)
    )


@register(
    "failed_attempt",
    summary="The student's own failed response, and what the verifier said about it.",
    source="SDPO 2601.20802 table 6 (output + own attempt; it lowers diversity)",
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
    attempt = _text(rollout.text, thinking)
    if _succeeded(rollout, "failed_attempt") or not attempt:
        return None
    feedback = _text(rollout.feedback) or _text(example.feedback) or WAS_WRONG
    return _privileged(
        Section("Here is an earlier attempt at this problem:", "failed attempt", attempt),
        Section("It got this feedback:", "feedback", feedback),
    )


@register(
    "step_critique",
    summary="The student's own steps, corrected one by one by a frozen critic.",
    source="2606.11173 (step-aligned feedback)",
    needs=("answer|solution",),
    leaks_answer=True,
    generates=True,
    on_empty="empty response, or no usable critique (counted): weight 0",
    thinking="stripped from the attempt and from the critique",
)
def step_critique(
    example: Example, rollout: Rollout, group: Sequence[Rollout], services: Services
) -> Privileged | None:
    """Correct steps word for word, wrong or incomplete ones edited, as `services.critic` says."""
    if services.critic is None:
        raise ValueError(
            "context 'step_critique' needs a critic: pass Services(critic=LocalCritic(...)) or "
            "Services(critic=ServerCritic(...))"
        )
    critique = services.critic.critique([(example, rollout)])[0]
    if critique is None:
        services.counts["unusable_critique"] += 1
        return None
    return _privileged(
        Section(
            "Here is an earlier attempt at this problem after a review. Steps that were right "
            "stand as they were written, the others are corrected:",
            "reviewed attempt",
            critique,
        )
    )


@register(
    "hint",
    summary="A hint or key idea without the answer.",
    source="ROSD 2605.28014 (key idea instead of the solution); AMR-SD 2605.18529",
    needs=("hint",),
    on_empty="no hint: weight 0",
)
def hint(
    example: Example, rollout: Rollout, group: Sequence[Rollout], services: Services
) -> Privileged | None:
    """The hint of the example."""
    text = _text(example.hint)
    if not text:
        return None
    return _privileged(Section("Here is a hint:", "hint", text))
