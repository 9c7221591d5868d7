from pathlib import Path

from report.make_fixture import CONDITIONS, make_run

from sdkernels.report import splits
from sdkernels.report.load import Problems, Run, load_run


def load(folder: Path, row: tuple = CONDITIONS[1]) -> Run:
    run = load_run(make_run(folder, row), "", Problems())
    run.label = run.condition
    return run


def test_correct_and_wrong_stand_side_by_side(tmp_path: Path) -> None:
    body = splits.by_verdict([load(tmp_path)])
    assert 'data-label="Gap: correct"><span>\u22120.028</span>' in body
    assert 'data-label="Gap: wrong"><span>\u22120.116</span>' in body
    assert 'data-label="Negative gaps: wrong"><span>47.0</span>' in body
    assert 'data-label="Length: correct"><span>81.0</span>' in body


def test_what_a_condition_does_not_have_is_a_dash_with_its_reason(tmp_path: Path) -> None:
    body = splits.by_verdict([load(tmp_path, CONDITIONS[0])])
    assert body.count('class="missing"') == 4
    assert "grpo (gap: correct, wrong; negative gaps: correct, wrong): no teacher" in body
    assert ">0<" not in body


def test_a_run_without_one_kind_of_rollouts_says_so(tmp_path: Path) -> None:
    run = load(tmp_path)
    for step in run.steps:
        step["gap_correct"] = step["completion_length_wrong"] = None
    body = splits.by_verdict([run])
    # It may well have correct rollouts, only that the context had nothing to say on them.
    assert "no rollout of any step verified as correct had a teacher signal" in body
    assert "no rollout of any step verified as wrong was recorded" in body


def test_kinds_of_tokens(tmp_path: Path) -> None:
    body = splits.by_kind([load(tmp_path)])
    assert 'data-label="KL(teacher, student): style"><span>0.264</span>' in body
    assert 'data-label="Share of tokens: math"><span>24.0</span>' in body
    body = splits.by_kind([load(tmp_path, CONDITIONS[0])])
    assert "(KL(teacher, student): math, style, other; size of the gap: math, style, other)" in body


def test_markers_as_published_and_by_words(tmp_path: Path) -> None:
    body = splits.markers([load(tmp_path)])
    assert 'data-label="E(y) as published before training: per response"><span>0.710</span>' in body
    assert 'data-label="Whole words after training: per word"><span>0.011</span>' in body
    assert (
        'data-label="E(y) as published in training rollouts: per response"><span>0.770</span>'
        in body
    )


def test_a_run_without_evaluation_shows_its_rollouts_alone(tmp_path: Path) -> None:
    run = load(tmp_path)
    run.summary["before"] = run.summary["after"] = None
    body = splits.markers([run])
    assert body.count("<table") == 1
    assert "before training" not in body


def test_runs_of_an_older_version_have_empty_sections(tmp_path: Path) -> None:
    run = load(tmp_path)
    run.summary["before"] = run.summary["after"] = None
    run.steps = [{"step": 1, "loss": 0.5, "seconds": {}}]
    for section in (splits.by_verdict, splits.by_kind, splits.markers):
        assert section([run]).startswith('<p class="empty">No ')
