import json
import re
from pathlib import Path

import pytest
from report.make_fixture import CONDITIONS, make_run, make_study

from sdkernels.report import build, plots
from sdkernels.report.study import load_study, model_parameters, plain_note

NAMES = [row[0] for row in CONDITIONS]


def edit_summaries(study: Path, **changes: object) -> None:
    for path in study.glob("*/summary.json"):
        path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_study_gets_page_plots_and_summary(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    assert build(study, order=NAMES) == study / "report.html"
    assert {path.name for path in (study / "plots").iterdir()} == {
        "learning_curves.png",
        "more_curves.png",
        "entropy_deciles.png",
        "accuracy.png",
        "time_per_step.png",
    }
    summary = json.loads((study / "summary.json").read_text())
    assert [entry["condition"] for entry in summary["conditions"]] == NAMES
    assert "not_finite" not in json.dumps(summary)
    assert summary["conditions"][1]["before"]["accuracy"] == 0.297
    assert "mechanics, not the science" in summary["note"]
    assert summary["problems"] == []


def test_the_same_input_gives_the_same_bytes(tmp_path: Path) -> None:
    results = []
    for name in ("a", "b"):
        study = make_study(tmp_path / name)
        build(study, order=NAMES)
        files = ["report.html", "summary.json", "plots/learning_curves.png"]
        results.append([(study / file).read_bytes() for file in files])
    assert results[0] == results[1]


def test_building_again_changes_nothing_and_keeps_the_order(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    build(study, order=NAMES)
    before = [(study / file).read_bytes() for file in ("report.html", "summary.json")]
    build(study)
    assert [(study / file).read_bytes() for file in ("report.html", "summary.json")] == before


def test_without_an_order_the_folders_decide(tmp_path: Path) -> None:
    runs = load_study(make_study(tmp_path)).runs
    assert [run.condition for run in runs] == sorted(NAMES)


def test_a_run_folder_gets_a_page_and_keeps_its_summary(tmp_path: Path) -> None:
    run = make_run(tmp_path / "run")
    before = (run / "summary.json").read_bytes()
    build(run)
    assert (run / "summary.json").read_bytes() == before
    assert "Reference solution: one run" in (run / "report.html").read_text(encoding="utf-8")


def test_words_that_someone_else_put_into_the_summary_stay(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    (study / "summary.json").write_text('{"note": "Only <b>ours</b>.", "extra": 3}')
    build(study)
    summary = json.loads((study / "summary.json").read_text())
    assert (summary["note"], summary["extra"]) == ("Only <b>ours</b>.", 3)
    assert "Only &lt;b&gt;ours&lt;/b&gt;." in (study / "report.html").read_text(encoding="utf-8")


def test_a_note_of_ours_is_renewed_when_the_runs_change(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    build(study)
    edit_summaries(study, steps=500, model="Qwen3-8B")
    build(study)
    assert json.loads((study / "summary.json").read_text())["note"] == ""
    assert 'class="note"' not in (study / "report.html").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("model", "steps", "start"),
    [
        ("SmolLM2-135M-Instruct", 3, "A few steps on a 135M model show the mechanics, not the"),
        ("SmolLM2-135M-Instruct", 1, "1 step on a 135M model shows the mechanics, not the"),
        ("SmolLM2-135M-Instruct", 900, "900 steps on a 135M model show the mechanics"),
        ("Qwen3-8B", 20, "20 steps on a 8B model show the mechanics"),
        ("mystery", 3, "A few steps on this model show the mechanics"),
        ("Qwen3-8B", 0, "No finished training step"),
        ("Qwen3-8B", 500, ""),
    ],
)
def test_the_note_follows_the_data(tmp_path: Path, model: str, steps: int, start: str) -> None:
    run = make_run(tmp_path / "run")
    edit_summaries(tmp_path, model=model, steps=steps)
    note = plain_note(load_study(run).runs)
    assert note.startswith(start)
    assert bool(note) == bool(start)


@pytest.mark.parametrize(
    ("model", "size"),
    [
        ("SmolLM2-135M-Instruct", 135e6),
        ("org/Qwen2.5-1.5B", 1.5e9),
        ("Qwen3-30B-A3B", 30e9),
        ("smollm2", 135e6),
        ("gpt2", None),
        ("3Bmodel", None),
    ],
)
def test_model_size_from_its_name(model: str, size: float | None) -> None:
    assert model_parameters({"model": model}) == size


def test_a_recorded_size_wins() -> None:
    assert model_parameters({"model": "x-7B", "num_parameters": 12}) == 12


def test_runs_with_one_title_are_told_apart(tmp_path: Path) -> None:
    make_run(tmp_path / "seed0")
    make_run(tmp_path / "seed1")
    labels = [run.label for run in load_study(tmp_path).runs]
    assert labels == ["Reference solution (seed0)", "Reference solution (seed1)"]


def test_no_folder_and_no_run_are_said_plainly(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"folder='.*nowhere' is not a folder; give a run"):
        build(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"holds no run: .*sdkernels train"):
        build(tmp_path)


def damage(study: Path) -> None:
    """Do to the runs what crashes, full disks and divergence do."""
    metrics = study / "grpo" / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes()[:-30])
    (study / "grpo" / "summary.json").unlink()
    (study / "reference_solution" / "metrics.jsonl").unlink()
    (study / "reference_without_thinking" / "tokens.jsonl").unlink()
    (study / "step_critique" / "metrics.jsonl").write_text('{"step": 1, "loss": NaN, "gap": 1e400}')
    for file in ("metrics.jsonl", "tokens.jsonl", "summary.json"):
        (study / "verifier_feedback" / file).write_text("")
    (study / "dasd" / "summary.json").write_text('{"condition": "dasd", "last": {"loss": NaN}}')
    (study / "aborted").mkdir()


def test_a_damaged_study_gives_a_report_that_names_file_and_line(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    damage(study)
    page = build(study).read_text(encoding="utf-8")
    for told in (
        "grpo/metrics.jsonl line 3: is cut off: the run stopped there; left out",
        "grpo/summary.json: is missing: the run did not finish",
        "reference_solution/metrics.jsonl: is missing",
        "reference_without_thinking/tokens.jsonl: is missing",
        "step_critique/metrics.jsonl line 1: loss is NaN",
        "step_critique/metrics.jsonl line 1: gap is +inf",
        "verifier_feedback/summary.json: is not valid JSON",
        "verifier_feedback/metrics.jsonl: holds no readable step",
        "verifier_feedback/tokens.jsonl: holds no readable rollout",
        "dasd/summary.json: last.loss is NaN",
        "aborted/: holds no file of a run; left out",
    ):
        assert told in page
    assert '<span class="bad" title="the run wrote NaN here"' in page
    summary = json.loads((study / "summary.json").read_text())
    assert summary["conditions"][0]["last"]["not_finite"] == {"loss": "NaN"}  # dasd comes first
    assert len(summary["problems"]) == len(re.findall("<li>", page.split("<main>")[0]))
    assert len(summary["conditions"]) == 6


def test_a_broken_summary_of_the_study_does_not_hide_its_runs(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    (study / "summary.json").write_text('{"conditions": [')
    found = load_study(study)
    assert not found.single
    assert len(found.runs) == 6
    assert [problem.split(": ")[0] for problem in found.problems] == ["summary.json"]


def test_runs_inside_a_run_are_mentioned(tmp_path: Path) -> None:
    run = make_run(tmp_path / "outer")
    make_run(run / "inner")
    found = load_study(run)
    assert len(found.runs) == 1
    assert list(found.problems) == ["inner/: is a run of its own; it has its own report"]


def test_a_run_with_nothing_in_its_files_still_gets_a_page(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").touch()
    page = build(tmp_path).read_text(encoding="utf-8")
    assert "No step was recorded" in page
    assert "No rollout was recorded" in page
    assert "No evaluation was recorded" in page
    assert "No finished training step was recorded" in page


def test_one_step_runs_and_three_hundred_conditions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All but the drawing of so many, which is slow and has its own test beside the plots."""
    drawn: list[int] = []
    monkeypatch.setattr(plots, "draw", lambda runs, _folder: drawn.append(len(runs)))
    for at in range(300):
        make_run(tmp_path / f"c{at:03}", (f"c{at:03}", f"C {at}", *CONDITIONS[at % 6][2:]), steps=1)
    page = build(tmp_path).read_text(encoding="utf-8")
    conditions = page.split('<section id="accuracy"')[0]
    assert conditions.count('<th scope="row">') == 300
    assert "300 conditions" in page
    assert len(page) < 20e6
    assert drawn == [300]
    assert len(json.loads((tmp_path / "summary.json").read_text())["conditions"]) == 300
