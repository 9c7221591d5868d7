"""The words that contexts share, so that two of them differ in what the teacher knows alone.

The wording is ours; Hübotter et al. (SDPO, 2601.20802) found the loss insensitive to it.
"""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

from sdkernels.contexts.compose import Privileged, Section, without_special_tokens
from sdkernels.contexts.thinking import strip_thinking
from sdkernels.contexts.types import Example, Rollout

CLOSING = (
    "Keep this in mind and now solve the problem above yourself, step by step, "
    "in the form it asks for."
)
WAS_WRONG = "The final answer of this attempt was checked, and it is not correct."


def privileged(*sections: Section) -> Privileged:
    """The sections after the question, with the common closing instruction."""
    return Privileged(sections, CLOSING)


def shown(section: Section) -> Privileged | None:
    """The section alone, as `privileged` has it; None where it is empty."""
    return privileged(section) if section.text else None


def clean(text: str | None, tokenizer: Any, thinking: str = "keep") -> str:
    """`text` as a prompt may show it: without surrounding white space, without the tokenizer's
    control tokens, and without think blocks for `"strip"`. Empty where nothing is left to show.
    """
    visible = strip_thinking(text or "") if thinking == "strip" else text or ""
    return without_special_tokens(visible, tokenizer).strip()


def answer_section(answer: str) -> Section:
    """The words for a final answer, right or wrong."""
    return Section("The final answer is known:", "known answer", answer)


def solution_section(text: str) -> Section:
    """The words for a solution that is right, whoever wrote it."""
    return Section("Here is a correct solution for reference:", "reference solution", text)


def sibling_section(text: str) -> Section:
    """The words for a correct response of the student."""
    return Section(
        "Here is an earlier response to this problem that was checked and is correct:",
        "correct response",
        text,
    )


def feedback_section(text: str) -> Section:
    """The words for what the verifier said about the response, where that is not shown itself."""
    return Section("An earlier attempt at this problem got this feedback:", "feedback", text)


def feedback_of(rollout: Rollout, example: Example, tokenizer: Any) -> str:
    """What the verifier said about the rollout, or the example's own feedback, or nothing."""
    return clean(rollout.feedback, tokenizer) or clean(example.feedback, tokenizer)


def succeeded(rollout: Rollout, context: str) -> bool:
    """Whether the rollout is correct.

    Raises:
        ValueError: it was not verified.
    """
    if rollout.success is None:
        raise ValueError(
            f"context {context!r} needs to know which responses are correct, but rollout "
            f"{rollout.index} of example {rollout.example_id!r} has success=None: verify it first"
        )
    return rollout.success


def siblings(
    rollout: Rollout,
    group: Sequence[Rollout],
    context: str,
    *,
    tokenizer: Any,
    success: bool,
    thinking: str = "keep",
    allow_self: bool = False,
) -> list[Rollout]:
    """The right (or the wrong) responses of the group that have something to show, by index."""
    return [
        other
        for other in sorted(group, key=lambda other: other.index)
        if succeeded(other, context) == success
        and (allow_self or other.index != rollout.index)
        and clean(other.text, tokenizer, thinking)
    ]


def group_of_siblings(settings: Mapping[str, Any]) -> int:
    """The least group of a context that shows a sibling, or with `allow_self` the response."""
    return 1 if settings["allow_self"] else 2


def pick(
    found: Sequence[Rollout], choose: str, *, seed: int, example: Example, rollout: Rollout
) -> Rollout | None:
    """The first, the shortest (in tokens) or a random one of `found`; None where there is none.

    The random choice depends on `seed`, the example and the rollout only.
    """
    if not found:
        return None
    if choose == "random":
        return random.Random(f"{seed}/{example.id}/{rollout.index}/{rollout.text}").choice(found)
    if choose == "shortest":
        return min(found, key=lambda other: len(other.token_ids))
    return found[0]
