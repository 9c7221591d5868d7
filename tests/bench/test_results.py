"""The results file: what is written can be read, what is inconsistent is refused."""

import copy
import json
import os

import pytest

from sdkernels.bench import results, runner
from sdkernels.bench.machine import machine
from sdkernels.bench.peer import Peer


@pytest.fixture
def result(setting, eager, scaled, quick):
    """One right row, one wrong, one not run."""
    absent = Peer("absent", "absent", eager.calls, lambda setting: "not today")
    run = runner.run(setting(), [eager, scaled("off", value=2.0), absent], quick)
    return results.assemble("command", machine(setting().device), [run])


def test_what_is_written_is_read(result, tmp_path):
    path = tmp_path / "folder" / "cpu.json"
    results.write(path, result)
    assert results.read(path) == json.loads(json.dumps(result))


def test_every_row_has_what_the_issue_asks_for(result):
    run = result["runs"][0]
    right, wrong, absent = run["rows"]
    for name in ("seconds", "ratio_to_floor", "flops_per_second", "peak_extra_bytes"):
        assert name in right
    assert right["value_error"] < 1e-5
    assert right["gradient_error"] < 1e-5
    assert {"median", "quartile_low", "quartile_high", "repeats"} <= right["seconds"].keys()
    assert wrong["status"] == "wrong"
    assert absent["reason"] == "not today"
    assert run["floor"]["copy_bytes_per_second"] > 0
    assert result["machine"]["versions"]["torch"]
    assert "clocks" in run


def change(result, *path, to=None):
    """A copy of the result with one field changed, or removed."""
    changed = copy.deepcopy(result)
    place = changed
    for step in path[:-1]:
        place = place[step]
    if to is None:
        del place[path[-1]]
    else:
        place[path[-1]] = to
    return changed


ROW = ("runs", 0, "rows")


@pytest.mark.parametrize(
    ("path", "to", "message"),
    [
        (("schema",), 1, "schema 1"),
        (("runs", 0, "floor"), None, "field 'floor'"),
        (("runs", 0, "floor", "copy_bytes_per_second"), None, "copy_bytes_per_second"),
        ((*ROW, 0, "ratio_to_floor"), 0.5, "not that of this run's floor"),
        ((*ROW, 0, "value_error"), None, "field 'value_error'"),
        ((*ROW, 0, "seconds", "repeats"), None, "field 'repeats'"),
        ((*ROW, 0, "status"), "fast", "status 'fast'"),
        ((*ROW, 1, "seconds"), {"median": 1.0}, "wrong, but it has a time"),
        ((*ROW, 2, "reason"), "", "not run without a reason"),
        (("left_out",), None, "field 'left_out'"),
    ],
)
def test_inconsistent_files_are_refused(result, tmp_path, path, to, message):
    broken = change(result, *path, to=to)
    with pytest.raises(ValueError, match=message):
        results.write(tmp_path / "x.json", broken)
    assert not (tmp_path / "x.json").exists()


def test_a_file_of_something_else_names_itself(tmp_path):
    path = tmp_path / "other.json"
    path.write_text("[1, 2", encoding="utf-8")
    with pytest.raises(ValueError, match=r"other\.json is no results file"):
        results.read(path)
    path.write_text("[]", encoding="utf-8")
    with pytest.raises(ValueError, match="expected an object, got list"):
        results.read(path)


def test_a_file_is_exchanged_in_one_step(result, tmp_path, monkeypatch):
    path = tmp_path / "cpu.json"
    results.write(path, result)
    before = path.read_text(encoding="utf-8")
    real = json.dumps

    def full(*given, **more):
        return real(*given, **more)[:100] + "\ud800"  # what cannot be written, after some that can

    monkeypatch.setattr(results.json, "dumps", full)
    with pytest.raises(UnicodeEncodeError):
        results.write(path, result)
    assert path.read_text(encoding="utf-8") == before


def test_where_nothing_can_be_written(tmp_path):
    results.ensure_writable(tmp_path / "new" / "cpu.json")
    assert not list((tmp_path / "new").iterdir())
    with pytest.raises(ValueError, match="is a folder"):
        results.ensure_writable(tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=r"nothing can be written to .*file"):
        results.ensure_writable(tmp_path / "file" / "cpu.json")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ValueError, match="not a file that may be written"):
        results.ensure_writable(tmp_path / "pipe")
