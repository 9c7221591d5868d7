import itertools
from pathlib import Path

import pytest

from sdkernels.report.load import Run
from sdkernels.report.series import (
    MAX_TELLABLE,
    curves,
    step_ticks,
    style,
    tick_label,
    ticks,
)


def run_of(**columns: list[float | None]) -> Run:
    """Return a run whose metrics are the given columns, one value a step from step 1."""
    length = max(map(len, columns.values()))
    steps = [
        {"step": at + 1, **{key: column[at] for key, column in columns.items()}}
        for at in range(length)
    ]
    return Run(Path(), "", {"condition": "x"}, steps)


def test_only_recorded_metrics_get_a_panel_and_the_others_are_named() -> None:
    data = curves([run_of(loss=[1.0, 0.5], gap=[None, None])])
    assert [panel.metric.key for panel in data.panels] == ["loss"]
    assert "Gap, teacher minus student" in data.absent


def test_both_entropies_share_one_axis() -> None:
    panels = curves([run_of(entropy=[2.0, 1.9], teacher_entropy=[0.5, 0.6])]).panels
    assert (panels[0].low, panels[0].high) == (panels[1].low, panels[1].high)
    assert panels[0].low <= 0.5
    assert panels[0].high >= 2.0


def test_a_zero_one_reward_is_drawn_once_and_a_graded_one_beside_accuracy() -> None:
    same = curves([run_of(accuracy=[0.25, 0.5], reward=[0.25, 0.5])]).panels
    assert [panel.metric.key for panel in same] == ["accuracy"]
    graded = curves([run_of(accuracy=[0.25, 0.5], reward=[0.3, 0.5])]).panels
    assert [panel.metric.key for panel in graded] == ["accuracy", "reward"]


def test_long_runs_become_means_over_bins() -> None:
    data = curves([run_of(loss=[float(at) for at in range(1000)])])
    points = data.panels[0].lines[0].points
    assert len(points) == data.thinned_to
    assert points[0][1] < 10
    assert sum(y for _, y in points) / len(points) == pytest.approx(499.5, rel=0.01)


def test_values_lie_within_the_axis() -> None:
    for values in ([0.0, 0.0], [5.0], [-3.0, 2.0], [1e-9, 2e-9], [1e29, -1e29], [88.0, 88.0]):
        panel = curves([run_of(loss=values)]).panels[0]
        assert panel.low <= min(values)
        assert max(values) <= panel.high
        assert panel.low < panel.high


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (-0.06, 0.0), (80, 88.4), (3e-5, 4e-5), (-1e29, 1e29)]
)
def test_ticks_are_few_evenly_spaced_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 7
    assert low - 1e-9 * abs(low) <= found[0]
    assert found[-1] <= high + 1e-9 * abs(high)
    gaps = [b - a for a, b in itertools.pairwise(found)]
    assert max(gaps) == pytest.approx(min(gaps))
    assert len({tick_label(tick, found) for tick in found}) == len(found)


def test_few_steps_are_all_labelled() -> None:
    assert step_ticks(1, 3) == [1, 2, 3]
    assert step_ticks(4, 4) == [4]
    assert len(step_ticks(1, 1000)) <= 7


def test_styles_differ_until_there_are_too_many() -> None:
    looks = [style(index, MAX_TELLABLE) for index in range(MAX_TELLABLE)]
    assert len(set(looks)) == MAX_TELLABLE
    assert style(0, MAX_TELLABLE + 1).plain
