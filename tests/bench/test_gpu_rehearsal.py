"""What `make gpu` runs on a device, rehearsed on the CPU at a tiny shape: time on a GPU is short,
and must not end at a mistake that Python alone can show. Only the device is pretended; the kernels
run in Triton's interpreter. Figures mean nothing here.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode
from torch.utils.flop_counter import FlopCounterMode

from sdkernels.bench import floor, gpu, gpu_checks, gpu_shape_a

pytestmark = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU: no rehearsal")


class _OnCpu(TorchFunctionMode):
    """Tensors asked for on "cuda" come from the CPU, and products take `out_dtype=` there."""

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("device") == "cuda":
            kwargs["device"] = "cpu"
        if "out_dtype" in kwargs:
            dtype, out = kwargs.pop("out_dtype"), kwargs.pop("out", None)
            product = func(*(matrix.to(dtype) for matrix in args), **kwargs)
            return product if out is None else out.copy_(product)
        return func(*args, **kwargs)


class _Event:
    def __init__(self, *, enable_timing: bool) -> None:
        assert enable_timing
        self.at = 0.0

    def record(self) -> None:
        self.at = time.perf_counter()

    def synchronize(self) -> None:
        assert self.at > 0

    def elapsed_time(self, end: "_Event") -> float:
        assert end.at >= self.at > 0
        return 1e3 * (end.at - self.at) + 1e-3


@pytest.fixture
def pretended(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.cuda as far as the runner uses it."""

    def nothing(*_: Any) -> None:
        return None

    def no_bytes(*_: Any) -> int:
        return 0

    pretences: dict[str, Callable[..., Any]] = {
        "Event": _Event,
        "synchronize": nothing,
        "empty_cache": nothing,
        "reset_peak_memory_stats": nothing,
        "memory_allocated": no_bytes,
        "max_memory_allocated": no_bytes,
        "get_device_properties": lambda *_: SimpleNamespace(total_memory=141 << 30),
    }
    for name, pretence in pretences.items():
        monkeypatch.setattr(torch.cuda, name, pretence)


@pytest.mark.usefixtures("pretended")
def test_shape_a_runs_to_its_table(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(gpu, "cannot_run", lambda: None)
    machine = {"gpu": "pretended", "torch": "2", "triton": "3"}
    monkeypatch.setattr(gpu, "machine", lambda: machine)
    monkeypatch.setattr(gpu_shape_a, "REPETITIONS", 1)
    out = tmp_path / "gpu.json"
    shape = ["--tokens", "9", "--hidden", "16", "--vocab", "70"]
    with _OnCpu():
        status = gpu.main(["--out", str(out), "--skip-tests", "--suite-seconds", "0", *shape])
    assert status == 0
    found = json.loads(out.read_text())["benchmark"]
    assert found["shape"] == [9, 16, 70]
    calls = found["calls"]
    assert found["chunk_tokens"] == dict.fromkeys(("floor 8TDV", "floor 6TDV", "floor 2TDV"), 9)
    assert list(calls)[-1] == "entropy, forward, fused"
    for name, row in calls.items():
        assert row["median_ms"] > 0, name
        assert row["over_floor"] > 0, name
        assert (row["peak_extra_bytes"] is None) == name.startswith("floor"), name
    text = capsys.readouterr().out
    for name in [*calls, *found["row kernels"]]:
        assert f"\n{name} " in text, name


def test_the_launches_for_the_memory_check_run() -> None:
    script = gpu_checks.SANITIZED.replace('device="cuda"', 'device="cpu"')
    script = script.replace("torch.cuda.synchronize()", "")
    assert "cuda" not in script
    exec(script, {})


@pytest.mark.usefixtures("pretended")
def test_its_floors_do_the_products_that_they_are_named_after(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(floor, "CHUNK_TOKENS", {"cpu": (4,)})
    monkeypatch.setattr(gpu_shape_a, "_row_kernels", lambda slab: {})
    monkeypatch.setattr(gpu_shape_a, "_plan", lambda *shape: {})
    monkeypatch.setattr(gpu_shape_a, "peak_bytes", lambda run: 0)
    operations: dict[str, int] = {}

    def count(runs: dict[str, Callable[[], object]]) -> dict[str, list[float]]:
        for name, run in runs.items():
            if name.startswith("floor"):
                with FlopCounterMode(display=False) as counter:
                    run()
                operations[name] = counter.get_total_flops()
        return {name: [1.0] for name in runs}

    monkeypatch.setattr(gpu_shape_a, "milliseconds", count)
    with _OnCpu():
        gpu_shape_a.benchmark(9, 16, 70)
    assert operations == {f"floor {n}TDV": n * 9 * 16 * 70 for n in (8, 6, 2)}
