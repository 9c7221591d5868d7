"""Contexts made of the response itself."""

import logging
from dataclasses import replace
from typing import Any

import pytest
from helpers.context_rows import build, rollout

from sdkernels import contexts
from sdkernels.contexts import Services
from sdkernels.contexts.attempt_contexts import copied_share
from sdkernels.contexts.sample import CRITIQUE, EXAMPLE, ROLLOUTS


def test_feedback_goes_to_failed_responses_unless_all_are_asked_for() -> None:
    right = ROLLOUTS[1]
    assert build("verifier_feedback", rollout=right) is None
    content = build("verifier_feedback", rollout=right, on="all")
    assert content is not None
    assert "it is correct" in content


def test_feedback_falls_back_to_the_example_and_then_to_nothing() -> None:
    silent = rollout(0, "x", success=False)
    assert build("verifier_feedback", rollout=silent) is None
    example = replace(EXAMPLE, feedback="compile error")
    content = build("verifier_feedback", example, rollout=silent)
    assert content is not None
    assert "compile error" in content
    own = build("verifier_feedback", example)
    assert own is not None
    assert "compile error" not in own


@pytest.mark.parametrize("name", ["failed_attempt", "reward_phrase"])
def test_unverified_rollouts_are_an_error(name: str) -> None:
    unverified = rollout(0, "x", success=None)
    with pytest.raises(ValueError, match=r"rollout 0 of example 'sample' has success=None"):
        build(name, rollout=unverified, group=[unverified])


def test_a_failed_attempt_is_shown_without_its_thinking_by_default() -> None:
    failed = rollout(0, "<think>secret</think>Answer: 3", success=False)
    content, kept = (
        build("failed_attempt", rollout=failed),
        build("failed_attempt", rollout=failed, thinking="keep"),
    )
    assert content is not None
    assert "secret" not in content
    assert "is not correct" in content
    assert kept is not None
    assert "secret" in kept


def test_a_correct_or_empty_attempt_is_no_failed_attempt() -> None:
    assert build("failed_attempt", rollout=ROLLOUTS[1]) is None
    empty = rollout(0, "<think>never ended", success=False)
    assert build("failed_attempt", rollout=empty) is None


def test_the_phrase_depends_on_the_reward() -> None:
    right, wrong = (
        build("reward_phrase", rollout=rollout(0, "my text", success=success))
        for success in (True, False)
    )
    assert right is not None
    assert wrong is not None
    assert "my text" in right
    assert "it is correct" in right
    assert "Wait" not in right
    assert wrong.split("\n\n")[-1].startswith("Wait, this response was checked, and it is not cor")
    thoughts = rollout(0, "<think>only</think>", success=True)
    assert build("reward_phrase", rollout=thoughts, thinking="strip") is None


def test_a_critique_needs_a_critic_and_may_be_unusable() -> None:
    with pytest.raises(ValueError, match="'step_critique' needs a critic"):
        contexts.get("step_critique")(EXAMPLE, ROLLOUTS[0], ROLLOUTS, Services())
    services = Services(critic=Saying(None))
    assert contexts.get("step_critique")(EXAMPLE, ROLLOUTS[0], ROLLOUTS, services) is None
    assert services.counts == {"empty": 1, "unusable_critique": 1}


class Saying:
    """A critic that always says the same."""

    def __init__(self, text: str | None) -> None:
        self.text = text

    def critique(self, pairs: Any) -> list[str | None]:
        return [self.text for _ in pairs]


def test_a_critique_that_copies_no_step_is_counted_logged_and_skipped_on_request(
    caplog: pytest.LogCaptureFixture,
) -> None:
    rewritten = Saying("Three boxes hold 36 pens.\nSeven less are 29.\nSo it is 29.")
    kept, skipped = Services(critic=rewritten), Services(critic=rewritten)
    row = (EXAMPLE, ROLLOUTS[0], ROLLOUTS)
    with caplog.at_level(logging.INFO):
        assert contexts.get("step_critique")(*row, kept) is not None
        assert "rollout 0 of example 'sample' copies none of its steps" in caplog.text
        assert contexts.get("step_critique", unaligned="skip")(*row, skipped) is None
        assert "weight 0" in caplog.text
    assert kept.counts == {"unaligned_critique": 1}
    assert skipped.counts == {"unaligned_critique": 1, "empty": 1}
    aligned = Services(critic=Saying(CRITIQUE))
    assert contexts.get("step_critique", unaligned="skip")(*row, aligned) is not None
    assert aligned.counts == {}


@pytest.mark.parametrize(
    ("attempt", "critique", "share"),
    [
        ("a\nb\nc", "a\nb\nc", 1.0),
        ("a\nb\nc", "a\nx\nc", 2 / 3),
        ("a\nb", "c\nd", 0.0),
        ("a  one\n\nb", "a one", 0.5),
        ("<think>a\nq</think>c\nd", "a\nd", 0.5),
        ("<step>a</step>\n<step>b</step>", "<step>a</step>\n<step>z</step>", 0.5),
        ("<step 1>\na\n</step 1>\n<step 2>\nb\n</step 2>", "<step 1>\nz\n</step 1>\nb", 0.5),
        ("First this. Then that.", "First this. Now that.", 0.5),
        ("one step only", "another", 1.0),
        ("---\n***", "x", 1.0),
        ("", "x", 1.0),
    ],
)
def test_copied_share(attempt: str, critique: str, share: float) -> None:
    assert copied_share(attempt, critique) == pytest.approx(share)
