"""Contexts made of what the data set says about the problem, or of nothing at all."""

from __future__ import annotations

import random
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from sdkernels.contexts.compose import Privileged, Section
from sdkernels.contexts.numbers import same_answer
from sdkernels.contexts.registry import register
from sdkernels.contexts.types import Example, Rollout, Services
from sdkernels.contexts.words import (
    CLOSING,
    answer_section,
    clean,
    shown,
    siblings,
    solution_section,
)

MANNER = {
    "concise": "Solve the problem in as few words as a correct solution needs: only the steps that "
    "lead to the answer, no repetition, no remarks about your own thinking. Keep the form that the "
    "problem asks for.",
    "detailed": "Solve the problem in full detail: say what each step does and why it is allowed, "
    "weigh other ways where there are any, and check the result before you give it. Keep the form "
    "that the problem asks for.",
}
WITHOUT_QUESTION = (
    "The problem that it solves is not shown. Keep this in mind and now write a solution of the "
    "same problem yourself, step by step."
)


@register(
    "none",
    summary="The student's own prompt: the teacher knows nothing more (binary reward alone).",
    source="2603.24472 section 3 (empty context); control of every method",
    made_of="nothing",
    order="question",
    truncation="nothing to cut",
)
def none(
    example: Example, rollout: Rollout, group: Sequence[Rollout], services: Services
) -> Privileged:
    """Messages equal to the student's prompt, so an equal teacher gives a gap of exactly 0."""
    return Privileged()


@register(
    "instruction",
    summary="How to write, without any knowledge of the solution: concise or detailed.",
    source="OPSD_Analysis (instruction only, concise and detailed)",
    made_of="nothing",
    order="question, instruction",
    truncation="nothing to cut",
)
def instruction(
    example: Example,
    rollout: Rollout,
    group: Sequence[Rollout],
    services: Services,
    *,
    style: Literal["concise", "detailed"] = "concise",
) -> Privileged:
    """An instruction about the manner of the response, in place of the common closing one."""
    return Privileged(closing=MANNER[style])


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
    return shown(Section("Here is a hint:", "hint", clean(example.hint, services.tokenizer)))


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
    return shown(answer_section(clean(example.answer, services.tokenizer)))


def _wrong_answer_is_made_of(settings: Mapping[str, Any]) -> str:
    return "group" if settings["choose"] == "sibling" else "data"


def _group_of_wrong_answer(settings: Mapping[str, Any]) -> int:
    return 2 if settings["choose"] == "sibling" else 1


def _why_no_wrong_answer(settings: Mapping[str, Any]) -> str:
    fixed = f"fixed={settings['fixed']!r} is right"
    reasons = {
        "changed": f"nothing in it to change and {fixed}",
        "sibling": "no wrong response with an answer",
        "fixed": fixed,
    }
    return f"no answer, or {reasons[settings['choose']]}: weight 0"


@register(
    "wrong_answer",
    summary="A wrong final answer, in the words of `final_answer`: a control.",
    source="OPSD_Analysis (fixed wrong answer)",
    made_of=_wrong_answer_is_made_of,
    needs=("answer",),
    least_group=_group_of_wrong_answer,
    on_empty=_why_no_wrong_answer,
)
def wrong_answer(
    example: Example,
    rollout: Rollout,
    group: Sequence[Rollout],
    services: Services,
    *,
    choose: Literal["changed", "sibling", "fixed"] = "changed",
    fixed: str = "-98765.4321",
    seed: int = 0,
) -> Privileged | None:
    """The reference answer with its last number (or its letter) changed, an answer that another
    response gave wrongly, or the same absurd one everywhere.

    An answer with neither number nor letter of a choice gets the fixed one.
    """
    right = clean(example.answer, services.tokenizer)
    if not right:
        return None
    if choose == "sibling":
        wrong = siblings(
            rollout, group, "wrong_answer", tokenizer=services.tokenizer, success=False
        )
        answers = [clean(other.extracted, services.tokenizer) for other in wrong]
    elif choose == "changed":
        answers = [changed_answer(right, f"{seed}/{example.id}"), fixed]
    else:
        answers = [fixed]
    # A response may be wrong for its form only, and the fixed answer be right by chance.
    answer = next((text for text in answers if text and not same_answer(text, right)), "")
    return shown(answer_section(answer))


def changed_answer(right: str, seed: str) -> str:
    """`right` with its last whole number moved by 1 to 9, or with another letter of a choice.

    Where that leaves the value what it is for the verifier (2.1 and 2.10, 0/5 and 0/7, digits below
    its tolerance), another step or the number before the last is taken. Empty where there is
    nothing to change. The choice depends on `seed` alone.
    """
    chance = random.Random(seed)
    if re.fullmatch(r"\(?[A-J]\)?", right):
        letters = [letter for letter in "ABCD" if letter not in right]
        return re.sub("[A-J]", chance.choice(letters), right)
    first = chance.randint(1, 9)
    for number in reversed(list(re.finditer(r"[0-9]+", right))):
        digits = number.group()
        for step in [*range(first, 10), *range(1, first)]:
            moved = str(int(digits) + step).zfill(len(digits))
            changed = right[: number.start()] + moved + right[number.end() :]
            if not same_answer(changed, right):
                return changed
    return ""


@register(
    "reference_solution",
    summary="A complete reference solution, its thinking included.",
    source="OPSD 2601.18734 section 3; 2603.24472 section 3 (c = s); SDFT 2601.19897",
    needs=("solution",),
    leaks_answer=True,
    on_empty="no solution: weight 0",
    thinking="kept",
)
def reference_solution(
    example: Example, rollout: Rollout, group: Sequence[Rollout], services: Services
) -> Privileged | None:
    """The reference solution as the data set has it."""
    return shown(solution_section(clean(example.solution, services.tokenizer)))


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
    return shown(solution_section(clean(example.solution, services.tokenizer, "strip")))


@register(
    "stronger_solution",
    summary="A complete solution that a stronger model wrote (RefSol).",
    source="2606.11173 (RefSol); OPSD 2601.18734 (chains of thought of a larger model)",
    needs=("stronger_solution",),
    leaks_answer=True,
    on_empty="no such solution, or nothing left of it: weight 0",
    thinking="setting `thinking`: kept by default",
)
def stronger_solution(
    example: Example,
    rollout: Rollout,
    group: Sequence[Rollout],
    services: Services,
    *,
    thinking: Literal["keep", "strip"] = "keep",
) -> Privileged | None:
    """The stronger model's solution of the data set, in the words of `reference_solution`."""
    return shown(solution_section(clean(example.stronger_solution, services.tokenizer, thinking)))


@register(
    "reference_only",
    summary="The reference solution without the question: what copying alone predicts.",
    source="Purified OPSD 2607.02234 (reference-only teacher)",
    needs=("solution",),
    leaks_answer=True,
    order="context, closing instruction; no question",
    roles="system messages kept; earlier turns and the question left out",
    on_empty="no solution, or nothing left of it: weight 0",
    thinking="setting `thinking`: kept by default",
)
def reference_only(
    example: Example,
    rollout: Rollout,
    group: Sequence[Rollout],
    services: Services,
    *,
    thinking: Literal["keep", "strip"] = "keep",
) -> Privileged | None:
    """The reference solution in a user turn of its own."""
    text = clean(example.solution, services.tokenizer, thinking)
    if not text:
        return None
    return Privileged((solution_section(text),), WITHOUT_QUESTION, question=False)


@register(
    "demonstration",
    summary="Another problem with its solution; nothing about this one.",
    source="OP²SD (the solution of another problem also works)",
    needs=("solution",),
    order="question, other problem, its solution, closing instruction",
    truncation="right, the longer of problem and solution first",
    on_empty="no other problem has a solution with something left of it: weight 0",
    thinking="setting `thinking`: kept by default",
)
def demonstration(
    example: Example,
    rollout: Rollout,
    group: Sequence[Rollout],
    services: Services,
    *,
    thinking: Literal["keep", "strip"] = "keep",
    seed: int = 0,
) -> Privileged | None:
    """A problem of `services.pool` with its reference solution.

    Which one depends on `seed` and the example only. Every example therefore gives a solution to
    others, which is why it needs one.
    """
    pool = services.pool
    if not pool:
        raise ValueError(
            "context 'demonstration' needs other problems to show: pass Services(pool=examples)"
        )
    start = random.Random(f"{seed}/{example.id}").randrange(len(pool))
    for step in range(len(pool)):
        other = pool[(start + step) % len(pool)]
        problem = clean(other.prompt[-1]["content"], services.tokenizer)
        text = clean(other.solution, services.tokenizer, thinking)
        is_another = other.id != example.id and other.prompt != example.prompt
        if is_another and problem and text:
            return Privileged(
                (
                    Section("Here is another problem:", "other problem", problem),
                    Section("And this is a correct solution of it:", "its solution", text),
                ),
                CLOSING.replace("the problem above", "the first problem above"),
            )
    return None
