from pathlib import Path
from typing import Any

import pytest

from sdkernels.cli import main
from sdkernels.lab import study


def test_the_command_passes_its_flags_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: dict[str, Any] = {}

    def run_cells(scale: Any, output: Path, **settings: Any) -> list[Any]:
        seen.update(settings, scale=scale.name, output=output)
        return []

    monkeypatch.setattr(study, "run_cells", run_cells)
    monkeypatch.setattr("sdkernels.lab.results.write_results", lambda *_: "the tables")
    out = tmp_path / "out"
    flags = ["--scale", "smoke", "--seeds", "2", "--resume", "--workers", "1", "--device", "cpu"]
    assert main(["lab", *flags, "--output", str(out)]) == 0
    announce = seen.pop("announce")
    assert callable(announce)
    assert seen == {
        "scale": "smoke",
        "output": out,
        "seeds": 2,
        "resume": True,
        "workers": 1,
        "device": "cpu",
    }
    printed = capsys.readouterr().out
    assert "the tables" in printed
    assert str(out / "results.md") in printed


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--scale", "defaultt"], "did you mean 'default'?"),
        (["--seeds", "0"], "seeds=0: expected at least 1"),
        (["--device", "tpu"], "device='tpu'"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    out = tmp_path / "out"
    assert main(["lab", "--output", str(out), *flags]) == 2
    error = capsys.readouterr().err
    assert error.startswith("sdkernels lab: ")
    assert message in error
    assert len(error.splitlines()) == 1
    assert not out.exists()
