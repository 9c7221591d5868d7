import json
from pathlib import Path

import pytest
from report.make_fixture import CONDITIONS, make_study

from sdkernels.report import terminal_table


@pytest.fixture
def summaries(tmp_path: Path) -> list[dict]:
    study = make_study(tmp_path)
    return [json.loads((study / row[0] / "summary.json").read_text()) for row in CONDITIONS]


def test_it_fits_and_lines_up(summaries: list[dict]) -> None:
    table = terminal_table(summaries)
    lines = table.split("\n\n")[0].splitlines()
    assert len(lines) == 3 + len(CONDITIONS)
    assert max(map(len, lines)) <= 120
    ends = {len(line) for line in lines}
    assert len(ends) == 1, "every line ends in the right-aligned last column"
    assert [line.split()[0] for line in lines[3:]] == [row[0] for row in CONDITIONS]


def test_units_stand_in_the_header(summaries: list[dict]) -> None:
    head = " ".join(terminal_table(summaries).splitlines()[:2])
    for word in ("nats", "per 1k", "tokens", "acc. %", "tokens/s", "GiB", "student", "teacher"):
        assert word in head


@pytest.mark.parametrize("width", [40, 60, 80, 100])
def test_narrow_terminals_get_the_table_in_parts(summaries: list[dict], width: int) -> None:
    table = terminal_table(summaries, width=width)
    assert max(map(len, table.splitlines())) <= width
    parts = [part for part in table.split("\n\n") if part.startswith("condition")]
    assert len(parts) > 1
    words = " ".join(" ".join(part.splitlines()[:2]) for part in parts)
    assert "loss" in words
    assert "GiB" in words


def test_missing_values_are_dashes_with_a_reason_and_plain_ascii(summaries: list[dict]) -> None:
    table = terminal_table(summaries)
    grpo = next(line for line in table.splitlines() if line.startswith("grpo"))
    assert grpo.split().count("-") == 2
    assert "- no teacher in this condition" in table
    assert table.isascii()


def test_nan_is_shown_and_explained(summaries: list[dict]) -> None:
    summaries[1]["last"]["loss"] = float("nan")
    table = terminal_table(summaries)
    assert "NaN the run wrote NaN here (reference_solution)" in table


def test_names_with_wide_or_hostile_characters_keep_the_columns(summaries: list[dict]) -> None:
    summaries[0]["condition"] = "東京\x1b[31m\nx"
    lines = terminal_table(summaries).split("\n\n")[0].splitlines()
    assert "\x1b" not in "".join(lines)
    assert lines[3].startswith("東京␛[31m x")
    assert len(lines[3]) == len(lines[4]) - 2, "two of the characters are two cells wide"


def test_nothing_to_show() -> None:
    assert terminal_table([]) == "No condition was run."
    assert "unnamed" in terminal_table([{}])
