"""Reasons for which a peer cannot run."""

import sys

import pytest
import torch

from sdkernels.bench import peer
from sdkernels.bench.peer import can_compile, first_of, importable, in_16_bit, on_gpu, one_line


def test_reasons_of_the_device_and_the_dtype(setting):
    assert on_gpu(setting()) == "runs on GPUs only"
    assert on_gpu(setting(device=torch.device("cuda"))) is None
    assert "bfloat16" in in_16_bit(setting())
    assert in_16_bit(setting(dtype=torch.float16)) is None


def test_compiling_on_cpu_needs_a_compiler(setting, monkeypatch):
    monkeypatch.setattr(peer.shutil, "which", lambda name: None)
    assert "C++ compiler" in can_compile(setting())
    assert can_compile(setting(device=torch.device("cuda"))) is None
    monkeypatch.setattr(peer.shutil, "which", lambda name: "/usr/bin/g++")
    assert can_compile(setting()) is None


def test_the_first_reason_counts(setting):
    reason = first_of(lambda _: None, lambda _: "second", lambda _: "third")
    assert reason(setting()) == "second"
    assert first_of(lambda _: None)(setting()) is None


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("", None),
        ("import no_such_dependency", "pip-name cannot be imported: No module named"),
        (
            "raise ImportError('wrong torch')",
            "pip-name cannot be imported: ImportError: wrong torch",
        ),
        ("raise NotImplementedError('no GPU\\nhere')", "NotImplementedError: no GPU here"),
    ],
)
def test_an_import_fails_with_its_own_reason(setting, monkeypatch, tmp_path, content, expected):
    (tmp_path / "peer_for_a_test.py").write_text(content, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    reason = importable("peer_for_a_test", "pip-name")(setting())
    sys.modules.pop("peer_for_a_test", None)
    assert reason is None if expected is None else expected in reason


def test_long_messages_are_cut():
    assert one_line(ValueError("a\n  b")) == "a b"
    assert len(one_line("x" * 500)) == 160
