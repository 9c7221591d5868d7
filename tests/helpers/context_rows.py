"""Calling a context on the built-in sample, with changes."""

from typing import Any

from sdkernels import contexts
from sdkernels.contexts import Example, Rollout
from sdkernels.contexts.sample import EXAMPLE, ROLLOUTS, sample_services


def build(
    name: str,
    example: Example = EXAMPLE,
    rollout: Rollout = ROLLOUTS[0],
    group: list[Rollout] = ROLLOUTS,
    **settings: Any,
) -> str | None:
    """The last turn of the teacher's prompt."""
    messages = contexts.get(name, **settings)(example, rollout, group, sample_services())
    return None if messages is None else messages[-1]["content"]


def rollout(
    index: int,
    text: str,
    *,
    success: bool | None,
    tokens: int = 5,
    extracted: str | None = None,
    feedback: str | None = None,
) -> Rollout:
    """A rollout of the sample."""
    return Rollout(
        "sample",
        index,
        text,
        list(range(tokens)),
        success=success,
        extracted=extracted,
        feedback=feedback,
    )
