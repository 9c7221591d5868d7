import json
from pathlib import Path

from sdkernels.lab.expectations import OPEN, Expectation, Verdict
from sdkernels.lab.summary import Estimate
from sdkernels.lab.tables import (
    as_markdown,
    as_text,
    base_table,
    behaviour_table,
    change_table,
    gap_table,
    shown_change,
    verdict_table,
)


def test_shares_are_shown_in_points_and_counts_as_they_are() -> None:
    assert shown_change([0.123, -0.05, 0.3], "accuracy") == "+12.3 [-5.0, +30.0]"
    assert shown_change([0.123, -0.05, 0.3], "waits") == "+0.12 [-0.05, +0.30]"


def test_text_is_aligned_and_markdown_is_a_table() -> None:
    table = [["name", "value"], ["a", "1"], ["longer", "22"]]
    assert as_text(table).splitlines() == [
        "name    value",
        "-------------",
        "a       1",
        "longer  22",
    ]
    assert as_markdown(table).splitlines()[:3] == ["| name | value |", "|---|---|", "| a | 1 |"]


def test_every_group_has_a_row(toy_run: Path) -> None:
    summary = json.loads((toy_run / "summary.json").read_text(encoding="utf-8"))
    for table in (change_table(summary, "accuracy"), behaviour_table(summary)):
        assert len(table) == 1 + 6
        assert {len(row) for row in table} == {len(table[0])}
    assert [row[0] for row in change_table(summary, "waits")[1:3]] == [
        "GRPO (no context)",
        "pull, solution",
    ]


def test_the_base_is_shown_in_every_condition(toy_run: Path) -> None:
    facts = json.loads((toy_run / "base.json").read_text(encoding="utf-8"))
    names = [row[0] for row in base_table(facts)]
    assert names[1:3] == ["fresh", "fresh, wait banned"]
    assert names[-1] == "fresh, sees solution"
    assert [row[0] for row in gap_table(facts)[1:]] == [
        "hint",
        "final_answer",
        "step_critique",
        "solution",
    ]


def test_a_verdict_without_cells_says_so() -> None:
    one = Expectation("a statement", "a paper", -1, "accuracy", lambda results: None)
    rows = verdict_table([Verdict(one, None, OPEN), Verdict(one, Estimate(0.1, 0, 0.2), OPEN)])
    assert rows[1] == ["a statement", "a paper", "below 0", "not run", "open"]
    assert rows[2][3] == "+10.0 [+0.0, +20.0]"
