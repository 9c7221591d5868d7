import argparse
import json
import subprocess
from pathlib import Path
from typing import Any

import pytest
import torch

from bench import trainer_step, trl_step


@pytest.mark.parametrize("name", trl_step.TRAINERS)
def test_before_after_and_the_layer_are_measured(name: str) -> None:
    flags = argparse.Namespace(tokens=16, hidden=16, vocab=64, rounds=1, threads=1)
    found = trl_step.measure(name, flags)
    assert found.keys() == {"before", "after", "layer"}
    for side in found.values():
        assert side["seconds"]["median"] > 0


def test_the_file_has_the_threads_of_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(name: str, flags: argparse.Namespace) -> dict[str, Any]:
        took = {"before": 3.0, "after": 2.0, "layer": 1.0}
        return {
            side: {"seconds": {"median": seconds}, "peak_extra_bytes": None}
            for side, seconds in took.items()
        }

    monkeypatch.setattr(trl_step, "in_own_process", measured)
    before = torch.get_num_threads()
    out = tmp_path / "trl.json"
    try:
        trl_step.main(["--threads", str(before + 1), "--out", str(out)])
    finally:
        torch.set_num_threads(before)
    assert json.loads(out.read_text())["machine"]["threads"] == before + 1


SIDE = {"seconds": {"median": 1.0}, "peak_extra_bytes": None}


def test_a_trainer_that_fails_does_not_lose_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "trl.json"
    seen = []

    def measured(name: str, flags: argparse.Namespace) -> dict[str, Any]:
        seen.append(len(json.loads(out.read_text())["rows"]) if out.exists() else 0)
        return (
            {"not_run": "no|trl"}
            if name == "gkd"
            else dict.fromkeys(("before", "after", "layer"), SIDE)
        )

    monkeypatch.setattr(trl_step, "in_own_process", measured)
    assert trl_step.main(["--trainers", "gkd", "sdpo", "grpo", "--out", str(out)]) == 0
    assert seen == [0, 0, 2]
    rows = json.loads(out.read_text())["rows"]
    assert [row["name"] for row in rows] == ["gkd", "sdpo", "grpo"]
    assert "| gkd | not run: no\\|trl | | | | | |" in capsys.readouterr().out


def test_where_nothing_runs_there_is_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trl_step, "in_own_process", lambda *_: {"not_run": "no trl"})
    out = tmp_path / "trl.json"
    assert trl_step.main(["--out", str(out)]) == 1
    assert not out.exists()


def test_the_last_line_of_a_process_that_fails_is_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    flags = argparse.Namespace(tokens=16, hidden=16, vocab=64, rounds=1, threads=1)
    for said, reason in (("a\nValueError: b\n", "ValueError: b"), ("", "no output, status -9")):
        done = subprocess.CompletedProcess([], -9, stdout="", stderr=said)
        monkeypatch.setattr(subprocess, "run", lambda *_, _done=done, **__: _done)
        assert trl_step.in_own_process("sdpo", flags) == {"not_run": reason}


@pytest.mark.parametrize(
    ("module", "arguments", "message"),
    [
        (trl_step, ["--tokens", "0"], "--tokens: expected a whole number above 0"),
        (trl_step, ["--rounds", "-1"], "--rounds: expected a whole number above 0"),
        (trl_step, ["--out", "{there}"], "exists and was not written by this command"),
        (trainer_step, ["--steps", "0"], "--steps: expected a whole number above 0"),
        (trainer_step, ["--model", "./nowhere"], "model './nowhere': no such folder"),
        (trainer_step, ["--out", "{there}"], "exists and was not written by this command"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    module: Any,
    arguments: list[str],
    message: str,
) -> None:
    there = tmp_path / "README.md"
    there.write_text("# Read me")
    monkeypatch.setattr(module, "in_own_process", None)
    if arguments[0] == "--out":
        monkeypatch.setattr(trainer_step, "check_model", lambda _: None, raising=False)
    words = [word.format(there=there) for word in arguments]
    out = [] if "--out" in words else ["--out", str(tmp_path / "new.json")]
    with pytest.raises(SystemExit) as caught:
        module.main([*words, *out])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert there.read_text() == "# Read me"


def test_contestants_that_all_fail_leave_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer_step, "check_model", lambda _: None, raising=False)
    monkeypatch.setattr(
        trainer_step, "in_own_process", lambda _, name: {"name": name, "not_run": "x"}
    )
    out = tmp_path / "trainer.json"
    assert trainer_step.main(["--out", str(out)]) == 1
    assert not out.exists()
