import json
import math
from pathlib import Path
from typing import Any

import pytest
from report.make_fixture import make_run

from sdkernels.report.load import Problems, Run, is_run, load_run, parse_rollout, read_rollout


def load(folder: Path) -> tuple[Run, list[str]]:
    problems = Problems()
    run = load_run(folder, "", problems)
    return run, list(problems)


def edit_summary(folder: Path, **changes: Any) -> None:
    path = folder / "summary.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_whole_run_has_no_problems(tmp_path: Path) -> None:
    run, problems = load(make_run(tmp_path / "run"))
    assert problems == []
    assert [step["step"] for step in run.steps] == [1, 2, 3]
    assert len(run.rollouts) == 6
    assert run.summary["before"]["n"] == 32


def test_each_missing_file_is_named(tmp_path: Path) -> None:
    run, problems = load(tmp_path)
    assert run.condition == tmp_path.name
    assert run.summary["steps"] == 0
    assert [line.split()[0] for line in problems] == [
        "summary.json:",
        "metrics.jsonl:",
        "tokens.jsonl:",
    ]


def test_a_line_cut_off_by_a_kill_is_named_and_the_rest_is_kept(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    path = folder / "metrics.jsonl"
    path.write_bytes(path.read_bytes()[:-40])
    run, problems = load(folder)
    assert [step["step"] for step in run.steps] == [1, 2]
    assert problems == ["metrics.jsonl line 3: is cut off: the run stopped there; left out"]


def test_a_cut_inside_a_character_is_no_different(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    with (folder / "metrics.jsonl").open("ab") as file:
        file.write('{"step": 4, "x": "é'.encode()[:-1])
    assert load(folder)[1] == ["metrics.jsonl line 4: is cut off: the run stopped there; left out"]


def test_bad_lines_are_grouped_with_their_numbers(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("{]\n" * 6 + "[1]\n\n" + '{"loss": 1}\n{"step": 2}\n')
    run, problems = load(tmp_path)
    assert [step["step"] for step in run.steps] == [2]
    assert (
        "metrics.jsonl lines 1, 2, 3, 4 and 2 more lines: is not valid JSON; left out" in problems
    )
    assert "metrics.jsonl line 7: is not a JSON object; left out" in problems
    assert "metrics.jsonl line 9: has no step number; left out" in problems


def test_nan_and_infinity_are_kept_for_the_table_but_not_drawn(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(
        '{"step": 1, "loss": 0.5}\n{"step": 2, "loss": NaN}\n{"step": 3, "loss": Infinity}\n'
        '{"step": 4, "loss": 1e308}\n'
    )
    run, problems = load(tmp_path)
    assert run.series("loss") == [(1, 0.5)]
    assert math.isnan(run.steps[1]["loss"])
    assert "metrics.jsonl line 2: loss is NaN; no point is drawn for it" in problems
    assert "metrics.jsonl line 3: loss is +inf; no point is drawn for it" in problems


def test_null_is_not_a_problem_and_not_zero(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text('{"step": 1, "gap": null}\n')
    run, problems = load(folder)
    assert run.series("gap") == []
    assert problems == []


def test_a_resumed_run_shows_the_later_line(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "metrics.jsonl").write_text(
        '{"step": 2, "loss": 1}\n{"step": 1, "loss": 3}\n{"step": 2, "loss": 5}\n'
    )
    run, problems = load(folder)
    assert run.series("loss") == [(1, 3.0), (2, 5.0)]
    assert problems == [
        "metrics.jsonl line 3: repeats a step (a resumed run); the later line is shown"
    ]


def test_without_a_summary_the_last_step_stands_in(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "summary.json").unlink()
    run, problems = load(folder)
    assert run.summary["last"] == run.steps[-1]
    assert run.summary["steps"] == 3
    assert run.summary["tokens_per_second"] == run.steps[-1]["tokens_per_second"]
    assert problems == [
        "summary.json: is missing: the run did not finish; what its steps recorded is shown"
    ]


@pytest.mark.parametrize("content", ['"text"', "[]", "{", "", "\xff", "[" * 100_000])
def test_a_summary_that_is_no_object_is_left_out(tmp_path: Path, content: str) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "summary.json").write_bytes(content.encode("latin-1"))
    run, problems = load(folder)
    assert run.condition == "run"
    assert len(problems) == 1
    assert problems[0].startswith("summary.json: ")


def test_wrong_types_in_a_summary_are_named(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    edit_summary(
        folder,
        title=["x"],
        before=3,
        after={"accuracy": "high", "accuracy_ci": [0.5, 0.2]},
        seconds_total=True,
    )
    run, problems = load(folder)
    assert run.summary["title"] == run.condition
    assert run.summary["before"] is None
    assert run.summary["after"]["accuracy"] is None
    assert run.summary["seconds_total"] is None
    assert problems == [
        "summary.json: title is not a text; left out",
        "summary.json: before is not an object; left out",
        "summary.json: seconds_total is not a number; left out",
        "summary.json: after.accuracy is not a number; left out",
        "summary.json: after.accuracy_ci is not two numbers in order; left out",
    ]


def test_an_unreadable_file_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    (folder / "metrics.jsonl").unlink()
    (folder / "metrics.jsonl").mkdir()
    run, problems = load(folder)
    assert run.steps == []
    assert any("metrics.jsonl: cannot be read (" in problem for problem in problems)


ROLLOUT = {"step": 1, "example_id": "a", "tokens": ["x", "y"], "logp": [-1.0, -2.0]}


def test_a_rollout_keeps_columns_apart_from_missing_ones() -> None:
    record = parse_rollout({**ROLLOUT, "gap": None, "entropy": [float("nan"), None]})
    assert not isinstance(record, str)
    assert record.columns["logp"] == [-1.0, -2.0]
    assert record.columns["gap"] is None
    assert record.columns["entropy"] == [None, None]
    assert record.unreadable == 1
    assert record.marker == [False, False]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tokens": None}, "tokens is not a list of texts"),
        ({"tokens": ["x", 3]}, "tokens is not a list of texts"),
        ({"tokens": []}, "the rollout has no tokens"),
        ({"gap": [1.0]}, "gap has 1 values for 2 tokens"),
        ({"gap": 3}, "gap has int values for 2 tokens"),
        ({"marker": [True]}, "marker does not have one value for each of 2 tokens"),
    ],
)
def test_a_broken_rollout_says_what_is_wrong(change: dict[str, Any], message: str) -> None:
    assert parse_rollout({**ROLLOUT, **change}) == message


def test_rollouts_are_found_again_behind_a_broken_line(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "run")
    path = folder / "tokens.jsonl"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    path.write_text(lines[0] + '{"tokens": "é"}\n' + lines[1], encoding="utf-8")
    run, problems = load(folder)
    assert problems == ["tokens.jsonl line 2: tokens is not a list of texts; left out"]
    assert [ref.line for ref in run.rollouts] == [1, 3]
    assert read_rollout(run, run.rollouts[1]).example_id == json.loads(lines[1])["example_id"]


def test_is_run_tells_a_run_from_a_study_and_from_nothing(tmp_path: Path) -> None:
    assert not is_run(tmp_path)
    (tmp_path / "summary.json").write_text('{"conditions": []}')
    assert not is_run(tmp_path)
    (tmp_path / "summary.json").write_text('{"condition": "x"}')
    assert is_run(tmp_path)


def test_a_nan_that_the_run_noted_comes_back(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    (run / "metrics.jsonl").write_text(
        '{"step": 1, "loss": null, "gap": 0.5, "not_finite": {"loss": "NaN"}}\n'
    )
    problems = Problems()
    found = load_run(run, "", problems)
    assert math.isnan(found.steps[0]["loss"])
    assert "metrics.jsonl line 1: loss is NaN; no point is drawn for it" in list(problems)


def test_means_are_over_the_steps_that_have_a_value(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    values = (1.0, None, 4.0)
    lines = [{"step": at, "gap_correct": value} for at, value in enumerate(values, 1)]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = load_run(run, "", Problems())
    assert found.means == {"gap_correct": 2.5}
    assert found.record["mean"] is not None


@pytest.mark.parametrize("text", ["[1]", "{", '{"per_example": 3}', '{"per_example": [1]}'])
def test_a_damaged_evaluation_is_noted(tmp_path: Path, text: str) -> None:
    run = make_run(tmp_path / "run")
    (run / "after.json").write_text(text)
    problems = Problems()
    assert load_run(run, "", problems).problems["after"] == []
    assert any(problem.startswith("after.json") for problem in problems)
