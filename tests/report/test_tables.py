from pathlib import Path

from report.make_fixture import CONDITIONS, make_study

from sdkernels.report.load import Problems, Run, load_run
from sdkernels.report.tables import conditions


def load(folder: Path) -> Run:
    run = load_run(folder, "", Problems())
    run.label = run.summary["title"]
    return run


def test_every_condition_and_quantity_is_there_with_its_unit(tmp_path: Path) -> None:
    study = make_study(tmp_path)
    body = conditions([load(study / row[0]) for row in CONDITIONS])
    for name, title, recipe, context, _, _ in CONDITIONS:
        assert title in body
        assert recipe in body
        assert name == "grpo" or f"sees {context}" in body
    for label in (
        "Loss", "Gap, nats", "Student entropy, nats", "Teacher entropy, nats", "Markers, per 1k",
        "Length, tokens", "Accuracy before, %", "Accuracy after, %", "Speed, tokens/s",
        "Peak memory, GiB",
    ):  # fmt: skip
        assert body.count(f'data-label="{label}"') == len(CONDITIONS)
    assert "21.1–38.3" in body


def test_missing_values_are_dashes_whose_reason_is_in_the_tooltip_and_below(tmp_path: Path) -> None:
    body = conditions([load(make_study(tmp_path) / "grpo")])
    assert body.count('class="missing" title="no teacher in this condition') == 2
    assert "– GRPO (binary reward) (gap, teacher entropy): no teacher in this condition" in body
