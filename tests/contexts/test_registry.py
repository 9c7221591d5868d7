"""Looking contexts up, and what unknown names and settings are answered."""

from typing import Any

import pytest

from sdkernels import contexts
from sdkernels.contexts import Privileged
from sdkernels.contexts.registry import _REGISTRY

NAMES = [
    "none",
    "final_answer",
    "reference_solution",
    "reference_without_thinking",
    "sibling_solution",
    "verifier_feedback",
    "failed_attempt",
    "step_critique",
    "hint",
]


def test_names() -> None:
    assert contexts.names() == NAMES


def test_every_record_is_complete() -> None:
    records = contexts.table()
    assert [record["name"] for record in records] == NAMES
    for record in records:
        for key in ("summary", "source", "order", "roles", "truncation", "on_empty", "thinking"):
            assert record[key], (record["name"], key)
        assert set(record["needs"]) <= {"answer", "solution", "hint", "answer|solution"}


def test_what_leaks_the_answer_and_what_asks_a_critic() -> None:
    leaking = {record["name"] for record in contexts.table() if record["leaks_answer"]}
    assert leaking == {
        "final_answer",
        "reference_solution",
        "reference_without_thinking",
        "sibling_solution",
        "step_critique",
    }
    assert [r["name"] for r in contexts.table() if r["generates"]] == ["step_critique"]


def test_get_changes_settings_without_touching_the_defaults() -> None:
    changed = contexts.get("sibling_solution", choose="shortest", seed=3)
    assert changed.settings == {
        "choose": "shortest",
        "thinking": "keep",
        "allow_self": False,
        "seed": 3,
    }
    assert contexts.get("sibling_solution").settings["choose"] == "first"


def test_an_unknown_name_gets_suggestions() -> None:
    with pytest.raises(
        ValueError, match=r"unknown context: 'reference_solutoin'\. Did you mean 'reference_sol"
    ):
        contexts.get("reference_solutoin")
    with pytest.raises(ValueError, match=r"unknown context: 'zzz'\. Known: none, final_answer"):
        contexts.get("zzz")


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
        with pytest.raises(ValueError, match="size must be of type int or NoneType, got 'a'"):
            contexts.get("mine", size="a")
        with pytest.raises(ValueError, match="'mine' is registered already"):
            contexts.register("mine", summary="s", source="here")
    finally:
        del _REGISTRY["mine"]
