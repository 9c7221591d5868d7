"""Contexts made of the student's other responses to the same problem."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

from sdkernels.contexts.compose import Privileged, Section
from sdkernels.contexts.numbers import agree, same_answer
from sdkernels.contexts.registry import register
from sdkernels.contexts.types import Example, Rollout, Services
from sdkernels.contexts.words import (
    answer_section,
    clean,
    feedback_of,
    feedback_section,
    group_of_siblings,
    pick,
    privileged,
    sibling_section,
    siblings,
)


@register(
    "sibling_solution",
    summary="A verified correct response of the student to the same problem.",
    source="SDPO 2601.20802 section 3; AntiSD 2605.11609; RLCSD 2606.11709",
    made_of="group",
    needs=("answer",),
    least_group=group_of_siblings,
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
    found = siblings(
        rollout,
        group,
        "sibling_solution",
        tokenizer=services.tokenizer,
        success=True,
        thinking=thinking,
        allow_self=allow_self,
    )
    chosen = pick(found, choose, seed=seed, example=example, rollout=rollout)
    return (
        None
        if chosen is None
        else privileged(sibling_section(clean(chosen.text, services.tokenizer, thinking)))
    )


@register(
    "sibling_and_feedback",
    summary="A correct response of the student, and what the verifier said about this one.",
    source="SDPO 2601.20802 section 4 and table 6 (output + solution)",
    made_of="group",
    needs=("answer",),
    leaks_answer=True,
    order="question, correct response, feedback, closing instruction",
    truncation="right, the longer of response and feedback first",
    on_empty="neither a correct response nor feedback (one of them stands alone): weight 0",
    thinking="setting `thinking`: kept by default",
)
def sibling_and_feedback(
    example: Example,
    rollout: Rollout,
    group: Sequence[Rollout],
    services: Services,
    *,
    feedback: Literal["always", "without_sibling"] = "always",
    on: Literal["failed", "all"] = "failed",
    choose: Literal["first", "random", "shortest"] = "first",
    thinking: Literal["keep", "strip"] = "keep",
    allow_self: bool = False,
    seed: int = 0,
) -> Privileged | None:
    """What is there of the two; `feedback="without_sibling"` is the default of SDPO's code.

    `on="failed"` gives correct responses no feedback.
    """
    found = siblings(
        rollout,
        group,
        "sibling_and_feedback",
        tokenizer=services.tokenizer,
        success=True,
        thinking=thinking,
        allow_self=allow_self,
    )
    chosen = pick(found, choose, seed=seed, example=example, rollout=rollout)
    sections = (
        []
        if chosen is None
        else [sibling_section(clean(chosen.text, services.tokenizer, thinking))]
    )
    said = (
        ""
        if on == "failed" and rollout.success
        else feedback_of(rollout, example, services.tokenizer)
    )
    if said and (feedback == "always" or not sections):
        sections.append(feedback_section(said))
    return privileged(*sections) if sections else None


def _group_of_vote(settings: Mapping[str, Any]) -> int:
    return max(settings["min_votes"], group_of_siblings(settings))


@register(
    "majority_vote",
    summary="A response with the answer that most of the group gave; no label is needed.",
    source="U-OPSD 2608.06296 (majority-vote pseudo-solution)",
    made_of="group",
    least_group=_group_of_vote,
    leaks_answer=True,
    on_empty="no answer that min_votes responses gave, or none but this one gave it: weight 0",
    thinking="setting `thinking`: kept by default",
)
def majority_vote(
    example: Example,
    rollout: Rollout,
    group: Sequence[Rollout],
    services: Services,
    *,
    min_votes: int = 2,
    choose: Literal["first", "random", "shortest"] = "first",
    thinking: Literal["keep", "strip"] = "keep",
    allow_self: bool = False,
    seed: int = 0,
) -> Privileged | None:
    """The chosen one of the responses that give the commonest answer, right or wrong
    (it leaks the right one wherever the majority is right).

    Numbers are one answer if the verifier takes them for the same, all else is compared as text
    without case and spaces; of equally common answers the first wins. The rollout itself votes,
    but is shown only with `allow_self`.
    """
    winners = max(_parties(group, services.tokenizer).values(), key=len, default=[])
    found = [
        other
        for other in winners
        if (allow_self or other.index != rollout.index)
        and clean(other.text, services.tokenizer, thinking)
    ]
    chosen = pick(found, choose, seed=seed, example=example, rollout=rollout)
    if chosen is None or len(winners) < min_votes:
        return None
    return privileged(
        Section(
            "Here is an earlier response to this problem. It was not checked, but most responses "
            "come to its answer:",
            "majority response",
            clean(chosen.text, services.tokenizer, thinking),
        )
    )


def _parties(group: Sequence[Rollout], tokenizer: Any) -> dict[str, list[Rollout]]:
    """The responses with an answer, by the first answer that theirs agrees with; all by index."""
    parties: dict[str, list[Rollout]] = {}
    for voter in sorted(group, key=lambda other: other.index):
        answer = clean(voter.extracted, tokenizer)
        if answer:
            party = next((first for first in parties if agree(answer, first)), answer)
            parties.setdefault(party, []).append(voter)
    return parties


def _needs_of_contrast(settings: Mapping[str, Any]) -> tuple[str, ...]:
    # Whatever is shown as right, the wrong side are responses that were verified.
    return ("answer", "solution") if settings["show"] == "solution" else ("answer",)


def _group_of_contrast(settings: Mapping[str, Any]) -> int:
    return 3 if settings["show"] == "sibling" else 2


@register(
    "contrastive",
    summary="Two teachers: one sees a correct response or answer, the other wrong ones.",
    source="RLCSD 2606.11709 (siblings), CEPO 2605.19436 (answers)",
    made_of="group",
    needs=_needs_of_contrast,
    least_group=_group_of_contrast,
    leaks_answer=True,
    order="question, context, closing instruction; both sides in the same words",
    on_empty="no right side, or no wrong one: weight 0",
    thinking="setting `thinking`: kept by default",
)
def contrastive(
    example: Example,
    rollout: Rollout,
    group: Sequence[Rollout],
    services: Services,
    *,
    show: Literal["sibling", "solution", "answer"] = "sibling",
    negatives: int = 4,
    choose: Literal["first", "random", "shortest"] = "first",
    thinking: Literal["keep", "strip"] = "keep",
    seed: int = 0,
) -> Privileged | None:
    """The right side and up to `negatives` wrong ones, none of them the rollout itself.

    Right is a correct response of the group (`show="sibling"`), the data set's solution or its
    answer; wrong are the group's wrong responses, or the different answers that they gave, numbers
    by value as in `majority_vote`, without those that the verifier takes for the right one.
    """
    wrong = siblings(
        rollout,
        group,
        "contrastive",
        tokenizer=services.tokenizer,
        success=False,
        thinking=thinking,
    )
    if show == "answer":
        right = clean(example.answer, services.tokenizer)
        answers = _parties(wrong, services.tokenizer)
        others = [answer for answer in answers if not same_answer(answer, right)]
    else:
        right = clean(example.solution, services.tokenizer, thinking)
        others = [clean(other.text, services.tokenizer, thinking) for other in wrong]
    if show == "sibling":
        found = siblings(
            rollout,
            group,
            "contrastive",
            tokenizer=services.tokenizer,
            success=True,
            thinking=thinking,
        )
        chosen = pick(found, choose, seed=seed, example=example, rollout=rollout)
        right = "" if chosen is None else clean(chosen.text, services.tokenizer, thinking)
    if not right or not others:
        return None
    section = answer_section if show == "answer" else _either_side
    return replace(
        privileged(section(right)),
        negatives=tuple(privileged(section(other)) for other in others[:negatives]),
    )


def _either_side(text: str) -> Section:
    # The same words for right and wrong, so that only the content can make the difference.
    return Section("Here is a solution of this problem for reference:", "solution", text)
