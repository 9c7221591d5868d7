"""`make gpu` where there is no GPU, and what it makes of results."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sdkernels.bench import gpu, gpu_checks, gpu_shape_a, suite

CALL = {"median_ms": 60.0, "over_floor": 1.1, "peak_extra_bytes": 3 << 20}
RESULT: dict[str, Any] = {
    "machine": {"gpu": "A GPU", "torch": "2", "triton": "3"},
    "benchmark": {
        "shape": [1, 2, 3],
        "calls": {"floor 8TDV": {**CALL, "peak_extra_bytes": None}, "kl": CALL},
        "row kernels": {"statistics": {"median_ms": 1.0, "bytes_per_second": 4.2e12}},
    },
}


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert gpu.main(["--out", str(tmp_path / "gpu.json")]) == 2
    assert "no GPU here" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_with_a_triton_that_is_too_old_it_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr("triton.__version__", "3.2.0")
    reason = gpu.cannot_run()
    assert reason is not None
    assert "Triton 3.2.0 is too old" in reason
    monkeypatch.setattr("triton.__version__", "3.6.0")
    assert gpu.cannot_run() is None


def test_a_part_that_fails_loses_nothing_before_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def broken(*_: int) -> dict[str, Any]:
        raise RuntimeError("illegal memory access")

    monkeypatch.setattr(gpu, "cannot_run", lambda: None)
    monkeypatch.setattr(gpu, "machine", lambda: RESULT["machine"])
    monkeypatch.setattr(gpu, "run_tests", lambda: {"status": "passed", "tests": 9.0})
    monkeypatch.setattr("sdkernels.bench.gpu_shape_a.benchmark", broken)
    out = tmp_path / "new" / "gpu.json"
    with pytest.raises(RuntimeError, match="illegal memory access"):
        gpu.main(["--out", str(out)])
    assert json.loads(out.read_text())["tests"]["status"] == "passed"


@pytest.mark.parametrize("error", [RuntimeError("no\nmemory"), None])
def test_a_suite_that_fails_loses_nothing_after_it(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    error: Exception | None,
) -> None:
    def run_jobs(*_: Any, **__: Any) -> Any:
        if error is not None:
            raise error
        return SimpleNamespace(failures=["jsd, tiny, T = 8: RuntimeError: no memory"])

    monkeypatch.setattr(gpu, "cannot_run", lambda: None)
    monkeypatch.setattr(gpu, "machine", lambda: RESULT["machine"])
    monkeypatch.setattr(gpu, "run_tests", lambda: {"status": "passed", "tests": 9.0})
    monkeypatch.setattr(gpu, "run_sanitizer", lambda: {"status": "no error"})
    monkeypatch.setattr(gpu_shape_a, "benchmark", lambda *_: RESULT["benchmark"])
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "A GPU")
    monkeypatch.setattr(suite, "run_jobs", run_jobs)
    out = tmp_path / "gpu.json"
    assert gpu.main(["--out", str(out)]) == 1
    assert json.loads(out.read_text())["sanitizer"]["status"] == "no error"
    text = capsys.readouterr().out
    where = "" if error else "jsd, tiny, T = 8: "
    assert f"suite: failed: {where}RuntimeError: no memory" in text
    assert "memory check: no error" in text


@pytest.mark.parametrize(
    ("tests", "sanitizer", "bad", "shown"),
    [
        ({"status": "passed", "tests": 9.0}, "no error", False, "passed (tests 9)"),
        ({"status": "failed (pytest's status 1)"}, "no error", True, "pytest's status 1"),
        ({"status": "stopped after 330 s", "tests": 4.0}, "no error", True, "stopped after"),
        ({"status": "passed"}, "errors found", True, "memory check: errors found"),
        ({"status": "passed"}, "not run: no tool", False, "memory check: not run: no tool"),
        (None, None, False, "tests: skipped"),
    ],
)
def test_the_table_and_the_status(
    tests: dict[str, Any] | None, sanitizer: str | None, bad: bool, shown: str
) -> None:
    result = dict(RESULT)
    if tests is not None:
        result |= {"tests": tests, "sanitizer": {"status": sanitizer}}
    assert gpu.failed(result) == bad
    text = gpu.table(result)
    assert shown in text
    assert "kl                                    60.00    1.100        3" in text
    assert "4.20 TB/s" in text


def test_every_test_file_it_runs_exists() -> None:
    for name in gpu_checks.TESTS:
        assert (gpu_checks.ROOT / "tests" / name).is_file(), name


def test_a_suite_that_takes_too_long_is_interrupted_and_counted(tmp_path: Path) -> None:
    slow = tmp_path / "test_slow.py"
    slow.write_text("import time\ndef test_a(): pass\ndef test_b(): time.sleep(600)\n")
    for seconds in (15.0, 60.0):  # on a busy machine pytest may need longer to begin
        found = gpu_checks.run_tests((str(slow),), seconds=seconds)
        assert found["status"] == f"stopped after {seconds:g} s"
        if "tests" in found:
            break
    assert found["tests"] >= 1
    slow.write_text("def test_a(): pass\ndef test_b(): assert False\n")
    found = gpu_checks.run_tests((str(slow),), seconds=60.0)
    assert found["status"] == "failed (pytest's status 1)"
    assert (found["tests"], found["failures"]) == (2.0, 1.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_the_tool_the_memory_check_is_reported_as_not_run(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "")
    assert gpu_checks.run_sanitizer()["status"].startswith("not run")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "exists and was not written by this command"),
        (["--suite-seconds", "nan"], "--suite-seconds: expected seconds, or 0"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    monkeypatch.setattr(gpu, "cannot_run", lambda: None)
    monkeypatch.setattr(gpu, "machine", None)
    out = tmp_path / "README.md"
    out.write_text("# Read me")
    with pytest.raises(SystemExit) as caught:
        gpu.main(["--out", str(out), *arguments])
    assert caught.value.code == 2
    assert message in capsys.readouterr().err
    assert out.read_text() == "# Read me"
