"""Tables of whole steps, from rows with numbers that can be checked by hand."""

from typing import Any

import pytest
import torch

from sdkernels.bench import step_tables
from sdkernels.bench.machine import machine

MIB = 1 << 20


def side(seconds: float, mebibytes: int | None) -> dict:
    size = None if mebibytes is None else mebibytes * MIB
    return {"seconds": {"median": seconds}, "peak_extra_bytes": size}


def test_the_layers_time_is_taken_off_both_sides() -> None:
    rows = [
        {"name": "sdpo", "before": side(5.0, 800), "after": side(3.0, 200), "layer": side(1.0, 9)},
        {"name": "gkd", "before": side(2.0, None), "after": side(2.0, None), "layer": side(1.0, 9)},
    ]
    lines = step_tables.trl_table({"rows": rows}).splitlines()
    assert lines[2] == "| sdpo | 4.00 | 2.00 | 2.00 | 800 | 200 | 0.25 |"
    assert lines[3] == "| gkd | 1.00 | 1.00 | 1.00 | | | |"


@pytest.mark.parametrize(
    ("before", "after", "cells"),
    [
        (3.0, 1.0, "| 2.00 | not above the layer's | |"),
        (3.0, 0.5, "| 2.00 | not above the layer's | |"),
        (0.5, 2.0, "| not above the layer's | 1.00 | |"),
    ],
)
def test_a_loss_that_takes_no_time_has_no_ratio(before: float, after: float, cells: str) -> None:
    row = {"name": "x", "before": side(before, 8), "after": side(after, 2), "layer": side(1.0, 9)}
    line = step_tables.trl_table({"rows": [row]}).splitlines()[2]
    assert " ".join(line.split()) == f"| x {cells} 8 | 2 | 0.25 |"


def test_a_loss_without_memory_has_no_share() -> None:
    row = {"name": "x", "before": side(3.0, 0), "after": side(2.0, 1), "layer": side(1.0, 9)}
    line = step_tables.trl_table({"rows": [row]}).splitlines()[2]
    assert " ".join(line.split()) == "| x | 2.00 | 1.00 | 2.00 | 0 | 1 | |"


@pytest.mark.parametrize("table", [step_tables.trainer_table, step_tables.methods_table])
def test_a_reason_stays_in_its_cell(table: Any) -> None:
    lines = table({"rows": [{"name": "TRL", "not_run": "either a|b\n  or c"}]}).splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| TRL | not run: either a\\|b or c | |")


def test_a_step_that_trains_fewer_tokens_shows_the_reason_for_having_no_ratio() -> None:
    rows = [
        {"name": "a", "seconds": 1.0, "of_sdpo": 1.07},
        {"name": "b", "seconds": 0.5, "not_compared": "trains 16 of SDPO's 32 tokens"},
    ]
    assert step_tables.methods_table({"rows": rows}).splitlines()[2:] == [
        "| a | 1.00 | 107% |",
        "| b | 0.50 | trains 16 of SDPO's 32 tokens |",
    ]


def test_a_block_says_which_packages_are_missing() -> None:
    facts = machine(torch.device("cpu"))
    facts["versions"] |= {"torch": "2.0", "trl": None}
    report = {"kind": "methods", "command": "c", "machine": facts, "settings": {}, "rows": []}
    text = step_tables.block(report, "methods.json")
    assert "torch 2.0, " in text
    assert "trl not installed, " in text


def test_a_trainer_that_did_not_run_says_why() -> None:
    ran = {
        "name": "ours",
        "step_seconds": {"median": 4.0},
        "step_tokens_per_second": 256.0,
        "without_rollout_seconds": {"median": 2.0},
        "without_rollout_tokens_per_second": 512.0,
        "peak_memory_bytes": 3 << 30,
    }
    table = step_tables.trainer_table({"rows": [ran, {"name": "TRL", "not_run": "no trl"}]})
    assert table.splitlines()[2:] == [
        "| ours | 4.00 | 256 | 2.00 | 512 | 3.00 |",
        "| TRL | not run: no trl | | | | |",
    ]


def test_names_say_what_and_where() -> None:
    assert step_tables.command_line("trl_step", ["--tokens", "8"]) == (
        "python -m bench.trl_step --tokens 8"
    )
    words = ["--out", "here/x.json", "--trainers", "my trainer"]
    assert step_tables.command_line("trl_step", words) == (
        "python -m bench.trl_step --trainers 'my trainer'"
    )
    name = step_tables.default_path("trl", torch.device("cpu")).name
    assert name.startswith("trl-cpu-")
    assert name.endswith(".json")
