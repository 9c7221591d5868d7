"""What the builders share."""

from helpers.context_rows import rollout

from sdkernels.contexts.sample import EXAMPLE
from sdkernels.contexts.words import clean, feedback_of, pick, siblings


def test_clean() -> None:
    assert clean(None) == ""
    assert clean(" <think>a</think> b ") == "<think>a</think> b"
    assert clean(" <think>a</think> b ", "strip") == "b"


def test_siblings_are_sorted_verified_and_visible() -> None:
    group = [
        rollout(2, "c", success=True),
        rollout(0, "a", success=True),
        rollout(1, "b", success=False),
        rollout(3, "<think>d</think>", success=True),
    ]

    def indices(success: bool, **settings: object) -> list[int]:
        found = siblings(group[1], group, "x", success=success, **settings)  # type: ignore[arg-type]
        return [other.index for other in found]

    assert indices(True) == [2, 3]
    assert indices(True, thinking="strip") == [2]
    assert indices(True, allow_self=True) == [0, 2, 3]
    assert indices(False) == [1]


def test_pick_of_nothing_is_nothing() -> None:
    for choose in ("first", "random", "shortest"):
        row = rollout(0, "a", success=True)
        assert pick([], choose, seed=0, example=EXAMPLE, rollout=row) is None


def test_the_rollouts_own_feedback_comes_first() -> None:
    assert feedback_of(rollout(0, "a", success=False, feedback=" own "), EXAMPLE) == "own"
    assert feedback_of(rollout(0, "a", success=False), EXAMPLE) == ""
