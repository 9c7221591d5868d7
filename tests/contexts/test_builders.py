"""What each builder shows the teacher; the exact prompts are golden snapshots.

A snapshot changes only on purpose: `SDKERNELS_UPDATE_SNAPSHOTS=1 pytest tests/contexts` rewrites
the files, and the difference is then for the reviewer to read.
"""

import difflib
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from sdkernels import contexts
from sdkernels.contexts import Example, Rollout, Services
from sdkernels.contexts.sample import EXAMPLE, ROLLOUTS, CannedCritic

SNAPSHOTS = Path(__file__).parent / "snapshots"

# The chat template of SmolLM2-135M-Instruct (ChatML), copied out of its tokenizer.
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|im_start|>assistant\n' }}{% endif %}"
)

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in contexts.names()},
    "sibling_solution-shortest": ("sibling_solution", {"choose": "shortest"}),
    "sibling_solution-stripped": ("sibling_solution", {"thinking": "strip"}),
}


def render(messages: list[dict[str, str]]) -> str:
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(SMOLLM2)
    return template.render(messages=messages, add_generation_prompt=True)


def build(
    name: str,
    example: Example = EXAMPLE,
    rollout: Rollout = ROLLOUTS[0],
    group: list[Rollout] = ROLLOUTS,
    **settings: Any,
) -> str | None:
    services = Services(critic=CannedCritic())
    messages = contexts.get(name, **settings)(example, rollout, group, services)
    return None if messages is None else messages[-1]["content"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_prompt_is_the_recorded_one(variant: str) -> None:
    name, settings = VARIANTS[variant]
    messages = contexts.get(name, **settings)(
        EXAMPLE, ROLLOUTS[0], ROLLOUTS, Services(critic=CannedCritic())
    )
    assert messages is not None
    prompt = render(messages)
    path = SNAPSHOTS / f"{variant}.txt"
    if os.environ.get("SDKERNELS_UPDATE_SNAPSHOTS") == "1":
        path.write_text(prompt, encoding="utf-8")
    recorded = path.read_text(encoding="utf-8")
    difference = difflib.unified_diff(
        recorded.splitlines(), prompt.splitlines(), "recorded", "built", lineterm=""
    )
    assert prompt == recorded, "\n".join(difference)


def test_there_is_no_snapshot_without_a_builder() -> None:
    assert {path.stem for path in SNAPSHOTS.glob("*.txt")} == set(VARIANTS)


def test_none_is_the_prompt_of_the_student_also_with_a_system_message() -> None:
    prompt = [{"role": "system", "content": "s "}, {"role": "user", "content": " q\n"}]
    example = Example(id="a", prompt=prompt, answer="1", solution="2", hint="3", feedback="4")
    services = Services(max_context_tokens=1)
    assert contexts.get("none")(example, ROLLOUTS[0], ROLLOUTS, services) == prompt


@pytest.mark.parametrize("name", [name for name in contexts.names() if name != "none"])
def test_every_other_context_keeps_the_question_first_and_the_closing_last(name: str) -> None:
    content = build(name)
    assert content is not None
    assert content.startswith(EXAMPLE.prompt[-1]["content"])
    assert content.endswith("in the form it asks for.")


@pytest.mark.parametrize("name", contexts.names())
def test_leaks_answer_says_whether_the_sample_shows_it(name: str) -> None:
    content = build(name)
    assert content is not None
    assert ("29" in content) == contexts.get(name).leaks_answer


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("final_answer", {"answer": None}),
        ("reference_solution", {"solution": "  "}),
        ("reference_without_thinking", {"solution": None}),
        ("reference_without_thinking", {"solution": "<think>only thoughts</think>"}),
        ("hint", {"hint": ""}),
    ],
)
def test_without_the_field_there_is_no_signal(name: str, fields: dict[str, str | None]) -> None:
    assert build(name, replace(EXAMPLE, **fields)) is None  # type: ignore[arg-type]


def test_reference_with_and_without_thinking_differ_in_the_thinking_only() -> None:
    with_it, without = build("reference_solution"), build("reference_without_thinking")
    assert with_it is not None
    assert without is not None
    start, end = with_it.index("<think>"), with_it.index("</think>\n") + len("</think>\n")
    assert with_it[:start] + with_it[end:] == without


def rollout(index: int, text: str, *, success: bool | None, tokens: int = 5) -> Rollout:
    return Rollout("sample", index, text, list(range(tokens)), success=success)


def test_a_sibling_is_not_the_rollout_itself_unless_allowed() -> None:
    lone = rollout(0, "my own", success=True)
    assert build("sibling_solution", rollout=lone, group=[lone]) is None
    content = build("sibling_solution", rollout=lone, group=[lone], allow_self=True)
    assert content is not None
    assert "my own" in content


def test_a_wrong_or_empty_sibling_does_not_count() -> None:
    group = [
        rollout(0, "wrong", success=False),
        rollout(1, "<think>x</think>", success=True),
    ]
    assert build("sibling_solution", rollout=group[0], group=group, thinking="strip") is None
    assert build("sibling_solution", rollout=group[0], group=group, thinking="keep") is not None


def test_which_sibling_is_chosen() -> None:
    group = [
        rollout(3, "third", success=True, tokens=2),
        rollout(1, "first", success=True, tokens=9),
        rollout(2, "second", success=True, tokens=5),
    ]
    failed = rollout(0, "x", success=False)
    first = build("sibling_solution", rollout=failed, group=[*group, failed])
    shortest = build("sibling_solution", rollout=failed, group=group, choose="shortest")
    assert first is not None
    assert "first" in first
    assert shortest is not None
    assert "third" in shortest


def test_the_random_sibling_depends_on_the_seed_and_the_rollout_alone() -> None:
    group = [rollout(i, f"text{i}", success=True) for i in range(1, 7)]

    def choose(seed: int, index: int) -> str | None:
        failed = rollout(index, "x", success=False)
        return build(
            "sibling_solution",
            rollout=failed,
            group=group[::-1] if seed % 2 else group,
            choose="random",
            seed=seed,
        )

    assert [choose(s, 0) for s in range(8)] == [choose(s, 0) for s in range(8)]
    assert len({choose(s, 0) for s in range(20)}) > 2
    assert len({choose(0, 10 + i) for i in range(20)}) > 2
    assert choose(1, 0) == build(
        "sibling_solution",
        rollout=rollout(0, "x", success=False),
        group=group,
        choose="random",
        seed=1,
    )


@pytest.mark.parametrize("name", ["sibling_solution", "failed_attempt"])
def test_unverified_rollouts_are_an_error(name: str) -> None:
    unverified = rollout(0, "x", success=None)
    with pytest.raises(ValueError, match=r"rollout 0 of example 'sample' has success=None"):
        build(name, rollout=unverified, group=[unverified])


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


def test_a_critique_needs_a_critic_and_may_be_unusable() -> None:
    with pytest.raises(ValueError, match="'step_critique' needs a critic"):
        contexts.get("step_critique")(EXAMPLE, ROLLOUTS[0], ROLLOUTS, Services())

    class Silent:
        def critique(self, pairs: Any) -> list[str | None]:
            return [None for _ in pairs]

    services = Services(critic=Silent())
    assert contexts.get("step_critique")(EXAMPLE, ROLLOUTS[0], ROLLOUTS, services) is None
    assert services.counts == {"empty": 1, "unusable_critique": 1}
