"""Looking contexts up, and what unknown names and settings are answered."""

from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from helpers.context_rows import build

from sdkernels import contexts
from sdkernels.contexts import Privileged
from sdkernels.contexts.registry import _REGISTRY
from sdkernels.contexts.sample import EXAMPLE, ROLLOUTS, sample_services

NAMES = [
    "none",
    "instruction",
    "hint",
    "final_answer",
    "wrong_answer",
    "reference_solution",
    "reference_without_thinking",
    "stronger_solution",
    "reference_only",
    "demonstration",
    "sibling_solution",
    "sibling_and_feedback",
    "majority_vote",
    "contrastive",
    "verifier_feedback",
    "failed_attempt",
    "reward_phrase",
    "step_critique",
    "regeneration",
    "rationalise",
    "self_reflection",
]
TEXTS = ("made_of", "summary", "source", "order", "roles", "truncation", "on_empty", "thinking")


def test_names() -> None:
    assert contexts.names() == NAMES


def test_every_record_is_complete() -> None:
    records = contexts.table()
    assert [record["name"] for record in records] == NAMES
    fields = {
        "answer",
        "solution",
        "stronger_solution",
        "hint",
        "answer|solution",
        "answer|feedback",
    }
    for record in records:
        for key in TEXTS:
            assert record[key], (record["name"], key)
        assert set(record["needs"]) <= fields
        assert record["made_of"] in ("nothing", "data", "attempt", "group", "model")
        assert record["generates"] == (record["made_of"] == "model")


@pytest.mark.parametrize("name", NAMES)
def test_leaks_answer_says_whether_some_row_of_the_sample_shows_it(name: str) -> None:
    contents = [build(name, rollout=rollout) or "" for rollout in ROLLOUTS]
    assert any("29" in content for content in contents) == contexts.get(name).leaks_answer


@pytest.mark.parametrize("name", NAMES)
def test_the_question_comes_first_and_an_instruction_last(name: str) -> None:
    content = build(name)
    assert content is not None
    question = EXAMPLE.prompt[-1]["content"]
    assert content.startswith(question) == (name != "reference_only")
    assert (content == question) == (name == "none")
    assert "[end of" not in content.split("\n\n")[-1]


class Copier:
    """A critic that finds no fault."""

    def critique(self, pairs: Any) -> list[str | None]:
        return [rollout.text or None for _, rollout in pairs]


@pytest.mark.parametrize("name", [*NAMES, "wrong_answer of sibling", "regeneration of sibling"])
def test_who_reads_responses(name: str) -> None:
    """Those whose prompt changes with the response and its group."""
    name, _, sibling = name.partition(" of ")
    key = "choose" if name == "wrong_answer" else "of"
    context = contexts.get(name, **({key: sibling} if sibling else {}))
    sample = sample_services()
    services = replace(sample, critic=Copier(), writer=sample.the_writer())
    silent = replace(ROLLOUTS[0], text="", token_ids=[], extracted=None, feedback=None)
    shown = [
        context(EXAMPLE, rollout, group, services)
        for rollout, group in ((ROLLOUTS[0], ROLLOUTS), (silent, [silent]))
    ]
    assert context.reads_responses == (shown[0] != shown[1])


def test_what_generates() -> None:
    generating = [r["name"] for r in contexts.table() if r["generates"]]
    assert generating == ["step_critique", "regeneration", "rationalise", "self_reflection"]


def test_get_changes_settings_without_touching_the_defaults() -> None:
    changed = contexts.get("sibling_solution", choose="shortest", seed=3)
    assert changed.settings == {
        "choose": "shortest",
        "thinking": "keep",
        "allow_self": False,
        "seed": 3,
    }
    assert contexts.get("sibling_solution").settings["choose"] == "first"


@pytest.mark.parametrize(
    ("name", "settings", "least"),
    [
        ("none", {}, 1),
        ("sibling_solution", {}, 2),
        ("sibling_solution", {"allow_self": True}, 1),
        ("sibling_and_feedback", {}, 1),
        ("majority_vote", {}, 2),
        ("majority_vote", {"min_votes": 3}, 3),
        ("majority_vote", {"min_votes": 2, "allow_self": True}, 2),
        ("majority_vote", {"min_votes": 1, "allow_self": True}, 1),
        ("contrastive", {}, 3),
        ("contrastive", {"show": "answer"}, 2),
        ("wrong_answer", {}, 1),
        ("wrong_answer", {"choose": "sibling"}, 2),
        ("regeneration", {}, 1),
        ("regeneration", {"of": "sibling"}, 2),
        ("regeneration", {"of": "sibling", "allow_self": True}, 1),
    ],
)
def test_the_least_group_can_give_a_signal_and_a_smaller_one_cannot(
    name: str, settings: dict[str, Any], least: int
) -> None:
    context = contexts.get(name, **settings)
    assert context.least_group == least
    # Right and wrong ones by turns; all gave the right answer where votes are counted.
    answers = {"extracted": "29"} if name == "majority_vote" else {}
    others = [replace(r, index=i, **answers) for i, r in enumerate((ROLLOUTS * 2)[:6])]

    def has_signal(size: int) -> bool:
        return any(
            context(EXAMPLE, group[0], list(group), sample_services()) is not None
            for group in permutations(others, size)
        )

    assert has_signal(least)
    assert least == 1 or not has_signal(least - 1)


def test_what_a_context_is_made_of_depends_on_its_settings() -> None:
    assert contexts.get("wrong_answer").made_of == "data"
    assert contexts.get("wrong_answer", choose="sibling").made_of == "group"


def test_an_unknown_name_gets_suggestions() -> None:
    with pytest.raises(
        ValueError, match=r"unknown context: 'reference_solutoin'\. Did you mean 'reference_sol"
    ):
        contexts.get("reference_solutoin")
    with pytest.raises(ValueError, match=r"unknown context: 'zzz'\. Known: none, instruction"):
        contexts.get("zzz")


@pytest.mark.parametrize(
    ("published", "ours"),
    [
        ("refsol", "'stronger_solution'"),
        ("StepAlignFB", "'step_critique'"),
        ("sd_zero", "'reward_phrase'"),
        ("rosd", "'hint' or 'self_reflection'"),
    ],
)
def test_the_name_of_a_paper_suggests_what_came_from_it(published: str, ours: str) -> None:
    with pytest.raises(ValueError, match=rf"unknown context: .* Did you mean .*{ours}.*\? Known"):
        contexts.get(published)


def test_an_unknown_setting_gets_suggestions() -> None:
    with pytest.raises(ValueError, match=r"setting of context 'sibling_solution': 'chose'.*choose"):
        contexts.get("sibling_solution", chose="first")
    with pytest.raises(ValueError, match="Known: none"):
        contexts.get("hint", thinking="keep")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"choose": "best"}, r"choose must be 'first' or 'random' or 'shortest', got 'best'"),
        ({"allow_self": "false"}, r"allow_self must be of type bool, got 'false'"),
        ({"seed": True}, r"seed must be of type int, got True"),
    ],
)
def test_a_setting_of_the_wrong_kind_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        contexts.get("sibling_solution", **settings)


@pytest.mark.parametrize(("number", "text"), [(999, "999"), (-2.5, "-2.5")])
def test_a_number_for_a_setting_of_text_becomes_its_text(number: float, text: str) -> None:
    assert contexts.get("wrong_answer", fixed=number).settings["fixed"] == text
    for value in (True, None, [1]):
        with pytest.raises(ValueError, match="fixed must be of type str, got"):
            contexts.get("wrong_answer", fixed=value)


def test_which_settings_hold_text() -> None:
    assert contexts.text_settings("wrong_answer") == {"fixed"}
    assert contexts.text_settings("sibling_solution") == set()
    assert contexts.text_settings("no such context") == set()


def test_a_number_of_things_is_at_least_one() -> None:
    with pytest.raises(ValueError, match="negatives must be of type int and at least 1, got 0"):
        contexts.get("contrastive", negatives=0)
    assert contexts.get("contrastive", seed=0).settings["seed"] == 0


def test_registering_ones_own_builder() -> None:
    @contexts.register("mine", summary="s", source="here", needs=("hint",))
    def mine(
        example: Any, rollout: Any, group: Any, services: Any, *, size: int | None = None
    ) -> Privileged:
        return Privileged()

    try:
        context = contexts.get("mine", size=3)
        assert context.settings == {"size": 3}
        assert contexts.get("mine", size=None).needs == ("hint",)
        with pytest.raises(ValueError, match="size must be of type int or NoneType and at"):
            contexts.get("mine", size="a")
        with pytest.raises(ValueError, match="'mine' is registered already"):
            contexts.register("mine", summary="s", source="here")
    finally:
        del _REGISTRY["mine"]
