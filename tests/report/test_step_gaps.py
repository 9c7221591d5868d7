import json
from pathlib import Path

from report.make_fixture import CONDITIONS, make_run

from sdkernels.report import step_gaps
from sdkernels.report.load import Problems, Run, load_run, read_rollout

TOKENS = ["2", "+2", "=4", "\n", "3+3=7", "\n", "Done"]
GAPS = [0.3, 0.1, 0.2, None, -1.0, -0.5, 0.6]


def load(folder: Path, *lines: dict, row: tuple = CONDITIONS[1]) -> Run:
    make_run(folder, row)
    if lines:
        (folder / "tokens.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    run = load_run(folder, "", Problems())
    run.label = run.condition
    return run


def line(**values: object) -> dict:
    return {"step": 1, "example_id": "a", "tokens": TOKENS, "gap": GAPS, **values}


def test_the_gap_of_a_step_is_the_mean_of_its_tokens(tmp_path: Path) -> None:
    run = load(tmp_path, line())
    steps = step_gaps.step_gaps(read_rollout(run, run.rollouts[0]))
    assert [(step.text, step.holds) for step in steps] == [
        ("2+2=4", True),
        ("3+3=7", False),
        ("Done", None),
    ]
    assert [round(step.gap, 9) for step in steps if step.gap is not None] == [0.2, -0.75, 0.6]


def test_correct_and_wrong_rollouts_and_sums(tmp_path: Path) -> None:
    wrong = line(success=False, tokens=["no"], gap=[-2.0])
    body = step_gaps.section([load(tmp_path, line(success=True), wrong, line(gap=None))])
    cells = dict.fromkeys(("in correct rollouts", "in wrong rollouts", "sums hold", "sums fail"))
    for title in cells:
        cells[title] = body.split(f'Mean gap of a step: {title}"><span>')[1].split("<")[0]
    # (0.2 - 0.75 + 0.6) / 3; the rollout without gaps counts for sums alone.
    assert list(cells.values()) == ["+0.017", "\u22122.00", "+0.200", "\u22120.750"]
    assert 'sums that hold, %"><span>50.0<small>of 4</small>' in body
    assert 'all"><span>7<small>3 rollouts</small>' in body


def test_sums_are_checked_without_a_teacher_too(tmp_path: Path) -> None:
    body = step_gaps.section([load(tmp_path, row=CONDITIONS[0])])
    assert body.count('class="missing"') == 4
    assert "no teacher in this condition" in body
    assert 'sums that hold, %"><span>' in body


def test_reasons_for_what_is_missing(tmp_path: Path) -> None:
    run = load(tmp_path, line(success=True, tokens=["Well"], gap=[0.1]))
    body = step_gaps.section([run])
    assert "no rollout with a gap was recorded that is verified as wrong" in body
    assert "no step has an equation between numbers" in body


def test_many_rollouts_are_sampled(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(step_gaps, "MAX_ROLLOUTS", 3)
    body = step_gaps.section([load(tmp_path, *[line()] * 10)])
    assert "3 rollouts</small>" in body


def test_no_rollouts(tmp_path: Path) -> None:
    run = load(tmp_path)
    run.rollouts = []
    assert step_gaps.section([run]).startswith('<p class="empty">No rollout')
