from pathlib import Path

from sdkernels.report import bars
from sdkernels.report.load import Run


def run_with(before: dict | None = None, after: dict | None = None, **seconds: float) -> Run:
    summary = {"condition": "x", "before": before, "after": after}
    return Run(Path(), "", summary, [{"step": 1, "seconds": seconds}], label="x")


def accuracy(value: float, low: float, high: float) -> dict:
    return {"accuracy": value, "accuracy_ci": [low, high], "n": 8, "k": 4}


def test_accuracy_rows_are_placed_on_a_round_axis() -> None:
    body = bars.accuracy([run_with(accuracy(0.3, 0.2, 0.4), None)])
    assert 'style="left:75.00%"' in body
    assert 'style="left:50.00%;width:50.00%"' in body
    assert "40 %" in body
    assert "no evaluation after training" in body
    assert "over 8 prompts, 4 answers each" in body


def test_absurd_accuracies_are_not_drawn() -> None:
    assert "No evaluation was recorded" in bars.accuracy([run_with({"accuracy": 1.7}, None)])


def test_time_bars_share_a_scale_and_name_only_phases_that_took_time() -> None:
    body = bars.time_per_step([run_with(rollout=3.0, loss=1.0), run_with(rollout=2.0)])
    assert body.count("width:75.00%") == 1
    assert "width:50.00%" in body
    assert "Rollouts" in body
    assert "Optimizer" not in body


def test_no_times() -> None:
    assert "No step times were recorded" in bars.time_per_step([run_with()])
