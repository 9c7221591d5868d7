"""`sdkernels bench` from the command line."""

import json

import pytest

from sdkernels.bench import results, suite
from sdkernels.cli import main

TINY = ["bench", "--shape", "tiny", "--repeats", "3", "--seconds", "1", "--tokens", "16"]


def run(capsys, *arguments):
    status = main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def test_one_row_with_a_peer_that_is_not_there(capsys, tmp_path):
    out = tmp_path / "row.json"
    status, text, _ = run(
        capsys, *TINY, "--peers", "eager, quack", "--case", "nll", "--out", str(out)
    )
    assert status == 0
    assert "floor: 3 bare matrix products" in text
    assert "| QuACK chunked_linear_cross_entropy | not run:" in text
    result = results.read(out)
    assert result["runs"][0]["rows"][0]["peer"] == "eager"
    assert "--peers 'eager, quack'" in result["command"]
    json.loads(out.read_text(encoding="utf-8"))


def test_several_lengths_and_a_frozen_head(capsys):
    arguments = [
        "--peers",
        "sdkernels",
        "--frozen-head",
        "--own-teacher",
        "--case",
        "kl_student_teacher",
    ]
    _, text, _ = run(capsys, "bench", "--shape", "24x100", "--tokens", "8", "16", *arguments)
    assert text.count("KL(S||T), frozen head, own head as teacher, float32, 24x100") == 2
    assert "floor: 3 bare matrix products" in text


def test_plan_runs_nothing(capsys, monkeypatch):
    monkeypatch.setattr("sdkernels.bench.runner.run", None)
    status, text, _ = run(capsys, "bench", "--plan", "--shape", "qwen3-8b", "--tokens", "8192")
    assert status == 0
    assert "40.79 TFLOP" in text
    assert "bfloat16" in text


def test_list(capsys):
    _, text, _ = run(capsys, "bench", "--list")
    for name in ("sdpo-topk", "gemma-3-1b", "liger-chunked-4096-compiled"):
        assert name in text


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--case", "kl-teacher-studen"], ["case 'kl-teacher-studen'", "'kl-teacher-student'"]),
        (["--shape", "qwen3-8"], ["shape 'qwen3-8'", "'qwen3-8b'"]),
        (["--peers", "eagre"], ["peer 'eagre'", "'eager'"]),
        (["--dtype", "bf16"], ["dtype 'bf16'", "bfloat16"]),
        (["--device", "tpu"], ["device 'tpu'", "cpu, cuda"]),
        (["--device", "cuda"], ["no GPU here", "--plan"]),
        (["--case", "nll", "--own-teacher"], ["--own-teacher", "'nll' has no teacher"]),
        (["--case", "logprob-entropy-forward", "--frozen-head"], ["has no gradient"]),
        (["--tokens", "0"], ["--tokens [0]", "more than 0"]),
        (["--repeats", "-1"], ["--repeats -1"]),
        (["--seconds", "nan"], ["--seconds nan", "more than 0"]),
    ],
)
def test_wrong_input_is_one_line_and_status_2(capsys, monkeypatch, arguments, parts):
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    status, out, err = run(capsys, *TINY[:1], *arguments)
    assert status == 2
    assert out == ""
    assert len(err.strip().splitlines()) == 1
    assert all(part in err for part in parts), err


@pytest.fixture
def interrupted(monkeypatch):
    """Ctrl-C at the second run."""
    real, made = suite.run, []

    def run(*given):
        made.append(given)
        if len(made) == 2:
            raise KeyboardInterrupt
        return real(*given)

    monkeypatch.setattr(suite, "run", run)


def test_ctrl_c_leaves_what_was_measured(capsys, tmp_path, interrupted):
    out = tmp_path / "row.json"
    status, text, err = run(
        capsys, *TINY, "32", "64", "--peers", "eager", "--case", "nll", "--out", str(out)
    )
    assert status == 130
    assert text.count("floor: 3 bare matrix products") == 1
    assert str(out) in text
    assert "resume_from_checkpoint" not in err
    found = results.read(out)
    assert [made["shape"]["tokens"] for made in found["runs"]] == [16]
    assert [entry["tokens"] for entry in found["left_out"]] == [32, 64]


def test_out_is_tried_before_anything_is_measured(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "run", None)
    status, out, err = run(capsys, *TINY, "--out", str(tmp_path))
    assert (status, out) == (2, "")
    assert f"{tmp_path} is a folder" in err


def test_a_run_that_fails_outside_a_peer_is_status_1(capsys, monkeypatch):
    monkeypatch.setattr(suite, "run", lambda *_: 1 / 0)
    status, text, _ = run(capsys, *TINY, "--peers", "eager", "--case", "nll")
    assert status == 1
    assert "left out: nll, tiny, T = 16: failed: ZeroDivisionError" in text


def test_tokens_that_do_not_fit_are_left_out(capsys, monkeypatch):
    monkeypatch.setattr(suite, "available_bytes", lambda device: 64 << 30)
    monkeypatch.setattr(suite, "run", None)
    arguments = ["--tokens", "100000000", "--peers", "eager", "--shape", "small"]
    status, text, _ = run(capsys, "bench", "--device", "cpu", *arguments)
    assert status == 0
    assert "T = 100000000: needs about 286 GiB, 64 GiB are free" in text


def test_what_is_no_results_file_is_not_replaced(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(suite, "run", None)
    out = tmp_path / "README.md"
    out.write_text("# Read me")
    status, _, err = run(capsys, *TINY, "--out", str(out))
    assert status == 2
    assert f"{out} exists and was not written by this command" in err
    assert out.read_text() == "# Read me"
