"""`python -m bench`."""

import pytest

from sdkernels.bench import __main__ as command
from sdkernels.bench import results, suite


@pytest.fixture
def two(monkeypatch):
    entries = [suite.Entry("nll", "tiny", 8, 0.01, peers=("eager",)) for _ in range(2)]
    monkeypatch.setattr(suite, "cpu_entries", lambda: entries)


def test_runs_prints_and_writes(two, capsys, tmp_path):
    out = tmp_path / "new" / "cpu.json"
    command.main(["--device", "cpu", "--out", str(out)])
    result = results.read(out)
    assert len(result["runs"]) == 2
    assert result["command"] == "python -m bench --device cpu"
    text = capsys.readouterr().out
    assert text.count("floor: 3 bare matrix products") == 2
    assert str(out) in text


def test_a_limit_leaves_runs_out_and_says_so(two, capsys, tmp_path):
    out = tmp_path / "cpu.json"
    command.main(["--device", "cpu", "--limit-seconds", "0.001", "--out", str(out)])
    assert len(results.read(out)["left_out"]) == 2
    assert "left out: nll, tiny, T = 8" in capsys.readouterr().out


def test_results_lie_in_the_checkout_or_where_an_installed_package_is_called(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    device = suite.torch.device("cpu")
    assert command.default_path(device).parent == command.HERE / "results"
    monkeypatch.setattr(command, "HERE", tmp_path / "site-packages")
    assert command.default_path(device).parent == tmp_path
    assert command.default_path(device).name.startswith("cpu-20")


def test_a_folder_as_file_is_refused_before_anything_is_measured(
    two, capsys, monkeypatch, tmp_path
):
    monkeypatch.setattr(suite, "run", None)
    with pytest.raises(SystemExit) as caught:
        command.main(["--device", "cpu", "--out", str(tmp_path)])
    assert caught.value.code == 2
    assert f"error: {tmp_path} is a folder" in capsys.readouterr().err


def test_ctrl_c_is_status_130(two, monkeypatch, tmp_path):
    def run(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(suite, "run", run)
    assert command.main(["--device", "cpu", "--out", str(tmp_path / "cpu.json")]) == 130


def test_a_run_that_fails_outside_a_peer_is_status_1(two, monkeypatch, tmp_path):
    monkeypatch.setattr(suite, "run", lambda *_: 1 / 0)
    out = tmp_path / "cpu.json"
    assert command.main(["--device", "cpu", "--out", str(out)]) == 1
    reasons = [entry["reason"] for entry in results.read(out)["left_out"]]
    assert reasons == ["failed: ZeroDivisionError: division by zero"] * 2


@pytest.mark.parametrize("limit", ["0", "-1", "nan", "soon"])
def test_a_limit_that_is_no_time_is_refused_by_name(two, capsys, monkeypatch, tmp_path, limit):
    monkeypatch.setattr(suite, "run", None)
    out = tmp_path / "cpu.json"
    with pytest.raises(SystemExit) as caught:
        command.main(["--device", "cpu", f"--limit-seconds={limit}", "--out", str(out)])
    assert caught.value.code == 2
    assert "--limit-seconds: expected seconds above 0" in capsys.readouterr().err
    assert not out.exists()


def test_what_is_no_results_file_is_not_replaced(two, capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(suite, "run", None)
    out = tmp_path / "README.md"
    for text in ("# Read me", "[]"):
        out.write_text(text)
        with pytest.raises(SystemExit) as caught:
            command.main(["--device", "cpu", "--out", str(out)])
        assert caught.value.code == 2
        assert f"{out} exists and was not written by this command" in capsys.readouterr().err
        assert out.read_text() == text


def test_an_earlier_file_is_replaced_where_it_is_named_and_kept_otherwise(
    two, capsys, monkeypatch, tmp_path
):
    default = tmp_path / "cpu.json"
    monkeypatch.setattr(command, "default_path", lambda device: default)
    few = ["--device", "cpu", "--limit-seconds", "0.001"]
    command.main(["--device", "cpu"])
    command.main(few)
    command.main(few)
    assert [len(results.read(path)["runs"]) for path in sorted(tmp_path.iterdir())] == [0, 0, 2]
    assert (tmp_path / "cpu-3.json").exists()
    assert f"{default} is kept: this goes to {tmp_path / 'cpu-2.json'}" in capsys.readouterr().err
    command.main([*few, "--out", str(default)])
    assert results.read(default)["runs"] == []


def test_a_gpu_that_is_not_there_is_one_line(capsys, monkeypatch):
    monkeypatch.setattr(suite.torch.cuda, "is_available", lambda: False)
    with pytest.raises(SystemExit) as caught:
        command.main(["--device", "cuda"])
    assert caught.value.code == 2
    assert "--device cuda: torch sees no GPU here" in capsys.readouterr().err
