from pathlib import Path
from typing import Any

from sdkernels.report import at_k
from sdkernels.report.load import Run


def run_with(label: str, before: Any, after: Any) -> Run:
    return Run(Path(), "", {"condition": label, "before": before, "after": after}, label=label)


def evaluated(k: int, accuracy: float) -> dict[str, Any]:
    shares = {"1": accuracy, str(k): min(1.0, 2 * accuracy)}
    return {"k": k, "accuracy": accuracy, "pass_at": shares, "maj_at_k": accuracy / 2}


def test_the_three_scores_stand_side_by_side() -> None:
    body = at_k.section([run_with("a", evaluated(12, 0.2), evaluated(12, 0.3))])
    for label, shown in (
        ("Before training: Avg@12", "20.0"),
        ("Before training: Pass@12", "40.0"),
        ("Before training: Maj@12", "10.0"),
        ("After training: Pass@12", "60.0"),
        ("After training: Maj@12", "15.0"),
    ):
        assert f'data-label="{label}"><span>{shown}</span>' in body
    assert "at least one of them is right" in body


def test_runs_with_other_numbers_of_answers_say_theirs() -> None:
    runs = [run_with("a", evaluated(4, 0.2), None), run_with("b", evaluated(8, 0.4), None)]
    body = at_k.section(runs)
    assert 'Pass@k"><span>40.0<small>k = 4</small>' in body
    assert 'Pass@k"><span>80.0<small>k = 8</small>' in body
    assert "no evaluation was recorded" in body


def test_older_evaluations_have_dashes_and_none_at_all_no_table() -> None:
    old = {"k": 4, "accuracy": 0.25}
    body = at_k.section([run_with("new", evaluated(4, 0.2), None), run_with("old", old, None)])
    assert "the evaluation recorded none" in body
    assert at_k.section([run_with("old", old, old)]) == ""
    damaged = [{"k": "4", "pass_at": 3}, {"k": float("nan")}, {"k": 1e400}, [1]]
    assert at_k.section([run_with("x", found, None) for found in damaged]) == ""
