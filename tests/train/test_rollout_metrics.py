"""Verdicts, lengths, markers and likeness of a step's rollouts."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from sdkernels.contexts import Example, Rollout
from sdkernels.train.batch import Row
from sdkernels.train.rollout_metrics import add_rollout_metrics
from sdkernels.train.step_metrics import StepMetrics

ALONE = SimpleNamespace(num_processes=1)


def row(text, ids, *, success=None, extracted=None, truncated=False):
    reward = None if success is None else float(success)
    rollout = Rollout("a", 0, text, ids, truncated, reward, success, extracted)
    return Row(Example("a", [], answer="3", task="number"), rollout, [1])


def taken(rows, *, group_size, with_signal=False):
    metrics = StepMetrics()
    add_rollout_metrics(metrics, rows, group_size=group_size, with_signal=with_signal)
    return metrics.take(ALONE)


def test_verdicts_lengths_and_markers():
    rows = [
        row("wait, 3", [1] * 10, success=True, extracted="3"),
        row("unlikely 4", [2] * 30, success=False, extracted="4", truncated=True),
    ]
    rows[0].teacher_prompt_ids = [1]
    values = taken(rows, group_size=2, with_signal=True)
    expected = {
        "accuracy": 0.5,
        "reward": 0.5,
        "signal_share": 0.5,
        "truncated_share": 0.5,
        "completion_length": 20,
        "completion_length_correct": 10,
        "completion_length_wrong": 30,
        "marker_count": 1,
        "markers_per_response": 0.5,
        "markers_per_1k": 1000 / 40,
        "markers_per_1k_correct": 100,
        "markers_per_1k_wrong": 0,
        "markers_per_word": 1 / 4,
        "markers_published_per_response": 1.0,  # "unlikely" holds "likely"
        "markers_published_per_1k": 2000 / 40,
        "markers_published_per_word": 2 / 4,
    }
    assert {name: values[name] for name in expected} == pytest.approx(expected)


def test_what_does_not_exist_is_none():
    values = taken([row("", [1]), row("x", [2])], group_size=2)
    for name in ("accuracy", "completion_length_correct", "markers_per_1k_wrong", "signal_share"):
        assert values[name] is None
    assert values["distinct_answers"] is None
    assert taken([row("x", [1])], group_size=1)["same_output_share"] is None


def test_groups_by_their_number_of_successes():
    def group(*verdicts):
        return [row("3", [1], success=verdict) for verdict in verdicts]

    rows = [*group(True, False), *group(True, True), *group(False, False), *group(False, True)]
    values = taken(rows, group_size=2)
    shares = {"failed": 0.25, "solved": 0.25}
    assert {name: values[f"{name}_group_share"] for name in shares} == shares
    assert values["lone_success_share"] == 0.5
    # Alone in its group a success has no siblings to lack; without verdicts there is none.
    assert taken(group(True), group_size=1)["lone_success_share"] is None
    assert taken(group(True, None), group_size=2)["lone_success_share"] is None


def test_likeness_is_that_within_a_group():
    def answers(*found):
        return [row(a, [ord(a[0])], success=a == "3", extracted=a) for a in found]

    # 3 and 3.0 are one answer in two outputs; the second group repeats the first one's outputs,
    # which does not count.
    rows = answers("3", "3.0", "4", "4") + answers("3", "4", "5", "6")
    for index, one in enumerate(rows[:2]):
        one.rollout.token_ids = [100 + index]
    values = taken(rows, group_size=4)
    assert values["same_output_share"] == pytest.approx(2 / 8)
    assert values["distinct_answers"] == pytest.approx((2 + 4) / 2)


def test_no_answer_is_no_distinct_answer():
    rows = [row("?", [1], success=False), row("!", [2], success=False)]
    assert taken(rows, group_size=2)["distinct_answers"] == 0
