import pytest

from sdkernels.report.fields import COLUMNS, as_number, has_teacher, interval, lookup

BY_PATH = {column.path: column for column in COLUMNS}


def test_as_number_takes_numbers_only() -> None:
    assert as_number(3) == 3.0
    assert as_number(10**400) == float("inf")
    assert as_number(True) is None
    assert as_number("3") is None
    assert as_number(None) is None


def test_lookup_survives_any_shape() -> None:
    assert lookup({"a": {"b": 1}}, "a", "b") == 1
    assert lookup({"a": [1]}, "a", "b") is None
    assert lookup({}, "a", "b") is None


@pytest.mark.parametrize("value", [None, [1], [2, 1], [float("nan"), 1], ["0", "1"], "01"])
def test_interval_refuses_what_is_no_interval(value: object) -> None:
    assert interval(value) is None


def test_the_cell_shows_value_and_interval() -> None:
    cell = BY_PATH[("after", "accuracy")].cell(
        {"after": {"accuracy": 0.3125, "accuracy_ci": [0.2, 0.41]}}
    )
    assert (cell.shown, cell.extra, cell.state) == ("31.2", "20.0–41.0", "value")


def test_nan_is_shown_as_nan_not_as_missing() -> None:
    cell = BY_PATH[("last", "loss")].cell({"last": {"loss": float("nan")}})
    assert (cell.shown, cell.state) == ("NaN", "bad")


@pytest.mark.parametrize(
    ("summary", "path", "why"),
    [
        (
            {"last": {"step": 1}, "teacher": None, "recipe": "nll"},
            ("last", "gap"),
            "no teacher in this condition",
        ),
        ({"last": {"step": 1}}, ("last", "gap"), "no token had a teacher"),
        (
            {"last": {"step": 1}, "teacher": "frozen", "recipe": "grpo"},
            ("last", "gap"),
            "no teacher in this condition",
        ),
        ({"last": {"step": 1}, "teacher": "frozen"}, ("last", "gap"), "no token had a teacher"),
        ({}, ("last", "loss"), "no training step was recorded"),
        ({}, ("after", "accuracy"), "no evaluation was recorded"),
        ({}, ("peak_memory_bytes",), "the run did not record it"),
        ({"tokens_per_second": 3.0}, ("peak_memory_bytes",), "not measured on this device"),
    ],
)
def test_a_missing_value_is_a_dash_with_its_reason(
    summary: dict, path: tuple[str, ...], why: str
) -> None:
    cell = BY_PATH[path].cell(summary)
    assert (cell.shown, cell.state) == ("–", "missing")
    assert cell.why.startswith(why)


def test_a_recipe_without_teacher_has_none_whatever_is_configured() -> None:
    assert has_teacher({"teacher": "ema", "recipe": "dasd"})
    assert not has_teacher({"teacher": "ema", "recipe": "grpo"})
    assert has_teacher({"teacher": "none", "recipe": "dasd"}) is False
    assert has_teacher({}) is None, "a run that was killed early does not say"
