from typing import Any

import pytest

from sdkernels.recipes import settings

TABLE = {
    "mode": settings.choice("soft", ("soft", "hard"), "which rule"),
    "scale": settings.number(1.0, "factor", above=0.0, high=4.0),
    "cap": settings.number(None, "bound, nats", low=0.0, optional=True),
    "count": settings.integer(10, "ids", low=1, when=("mode", ("hard",))),
    "exact": settings.flag(False, "no rounding"),
}


def test_defaults_fill_in_what_is_not_given() -> None:
    assert settings.resolve("r", TABLE, {"scale": 2}) == {
        "mode": "soft",
        "scale": 2.0,
        "cap": None,
        "count": None,
        "exact": False,
    }
    assert settings.resolve("r", TABLE, {"mode": "hard"})["count"] == 10


@pytest.mark.parametrize(
    ("name", "value", "accepted"),
    [
        ("mode", "sfot", "one of 'soft', 'hard'"),
        ("scale", 0.0, "a number > 0 and <= 4"),
        ("scale", 4.1, "a number > 0 and <= 4"),
        ("scale", float("nan"), "a number > 0 and <= 4"),
        ("scale", "2", "a number > 0 and <= 4"),
        ("scale", True, "a number > 0 and <= 4"),
        ("scale", None, "a number > 0 and <= 4"),
        ("cap", -1, "a number >= 0, or None for off"),
        ("cap", float("inf"), "a number >= 0, or None for off"),
        ("count", 0, "a whole number >= 1"),
        ("count", 2.5, "a whole number >= 1"),
        ("count", True, "a whole number >= 1"),
        ("exact", 1, "True or False"),
    ],
)
def test_a_bad_value_is_named_with_what_is_accepted(name: str, value: Any, accepted: str) -> None:
    with pytest.raises(ValueError, match="recipe 'r'") as error:
        settings.resolve("r", TABLE, {name: value})
    assert f"{name}={value!r} is not accepted; give {accepted}" in str(error.value)


def test_an_unknown_setting_gets_the_nearest_name() -> None:
    with pytest.raises(ValueError, match=r"setting of recipe 'r': 'scael'; did you mean 'scale'"):
        settings.resolve("r", TABLE, {"scael": 1.0})


def test_a_setting_without_effect_is_refused_not_ignored() -> None:
    with pytest.raises(ValueError, match=r"count=3 has no effect with mode='soft'.*mode='hard'"):
        settings.resolve("r", TABLE, {"count": 3})


def test_unknown_lists_what_there_is() -> None:
    assert settings.unknown("thing", "zzz", ["b", "a"]) == "unknown thing: 'zzz'. Known: a, b"
    assert "did you mean 'alpha'?" in settings.unknown("thing", "alhpa", ["alpha", "beta"])
    twice = settings.unknown("thing", "alhpa", ["alpha", "beta"], ["beta", "alpha"])
    assert "did you mean 'alpha' or 'beta'?" in twice


def test_published_names_are_whole_words_of_a_source() -> None:
    sources = {"a": "SD-Zero 2604.12002 (say it again)", "b": "2606.11173 (StepAlignFB: steps)"}
    assert settings.published_as("sd_zero", sources) == ["a"]
    assert settings.published_as("stepalignfb", sources) == ["b"]
    assert settings.published_as("zero", sources) == []
    assert settings.published_as("again", sources) == []
    assert settings.published_as("", sources) == []
