"""Tables show every row: timed, wrong, not run, left out."""

import copy
import re

import pytest

from sdkernels.bench import results, runner, tables
from sdkernels.bench.machine import machine
from sdkernels.bench.peer import Peer


@pytest.fixture
def result(setting, eager, scaled, quick):
    absent = Peer("absent", "Absent", eager.calls, lambda setting: "not today")
    run = runner.run(setting(frozen=True), [eager, scaled("Off", value=2.0), absent], quick)
    left_out = [{"case": "nll", "shape": "small", "tokens": 7, "reason": "no time"}]
    return results.assemble("the command", machine(setting().device), [run], left_out)


def test_every_row_is_there_in_order(result):
    lines = tables.table(result["runs"][0]).splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "floor: 3 bare matrix products",
        "eager PyTorch",
        "Off",
        "Absent",
    ]
    assert len({line.count("|") for line in lines}) == 1
    assert re.search(r"WRONG: beyond 0.001 .* 1\.0e\+00", lines[4])
    assert "not run: not today" in lines[5]


def test_a_timed_row_is_what_the_file_says(result):
    run = result["runs"][0]
    row = run["rows"][0]
    row["seconds"] |= {"median": 0.0123, "quartile_low": 0.0111, "quartile_high": 0.0145}
    row |= {"ratio_to_floor": 1.518, "flops_per_second": 4.2e9, "peak_extra_bytes": 3 << 20}
    cells = [cell.strip() for cell in tables.table(run).splitlines()[3].split("|")]
    assert cells[2:6] == ["12.3 ms (11.1 - 14.5)", "1.52", "4", "3"]


def test_text_names_setting_machine_command_and_what_was_left_out(result):
    text = tables.text(result)
    assert "KL(T||S), frozen head, other model as teacher, float32, 40x300: T = 16" in text
    assert "the command" in text
    assert "torch 2" in text
    assert "left out: nll, small, T = 7: no time" in text


def test_a_footnote_for_several_runs_has_ranges(result):
    run = result["runs"][0]
    other = copy.deepcopy(run)
    run["floor"]["seconds"]["repeats"], other["floor"]["seconds"]["repeats"] = 3, 13
    run["floor"]["copy_bytes_per_second"], other["floor"]["copy_bytes_per_second"] = 36.2e9, 27e9
    found = tables.footnote(result, [run, other])
    assert "; 3 to 13 rounds in one process" in found
    assert "device copy 27 to 36 GB/s" in found
    assert "; 3 rounds in" in tables.footnote(result, [run])


@pytest.mark.parametrize(("share", "said"), [(None, False), (0.04, False), (0.3, True)])
def test_a_busy_machine_is_named(result, share, said):
    quiet = result["runs"][0] | {"others_cpu_share": 0.0}
    found = tables.footnote(result, [quiet, quiet | {"others_cpu_share": share}])
    assert ("other processes took up to 30% of the processor" in found) == said


def test_tera_or_giga():
    assert tables._flops_unit(7.9e14) == ("TFLOP/s", 1e12)
    assert tables._flops_unit(1.6e11) == ("GFLOP/s", 1e9)
