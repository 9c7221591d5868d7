"""Modes that are refused, and what is said about those that accelerate ignores."""

from __future__ import annotations

import logging
from types import SimpleNamespace

import pytest

from sdkernels.train.errors import CheckpointError
from sdkernels.train.sharding import check_mode, refuse_plain


def accelerator(kind, **state):
    return SimpleNamespace(distributed_type=kind, state=SimpleNamespace(**state))


def test_modes_that_cannot_give_the_head_are_refused():
    zero3 = SimpleNamespace(zero_stage=3)
    with pytest.raises(ValueError, match=r"ZeRO-3 .*use FSDP2 .*fsdp2\.yaml"):
        check_mode(accelerator("DEEPSPEED", deepspeed_plugin=zero3))
    with pytest.raises(ValueError, match=r"FSDP1 .*set fsdp_version: 2"):
        check_mode(accelerator("FSDP", fsdp_plugin=SimpleNamespace(fsdp_version=1)))


def test_modes_that_work_are_let_through(caplog):
    with caplog.at_level(logging.WARNING):
        for kind in ("NO", "MULTI_GPU", "MULTI_CPU"):
            check_mode(accelerator(kind))
        check_mode(accelerator("FSDP", fsdp_plugin=SimpleNamespace(fsdp_version=2)))
    assert not caplog.text


def test_what_is_untested_or_ignored_is_said(caplog, monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    with caplog.at_level(logging.WARNING):
        check_mode(accelerator("MULTI_CPU"))
        check_mode(accelerator("DEEPSPEED", deepspeed_plugin=SimpleNamespace(zero_stage=2)))
    assert "FSDP was asked for, but accelerate runs MULTI_CPU here" in caplog.text
    assert "ZeRO-2 has not been tested" in caplog.text


def test_a_plain_checkpoint_is_not_resumed_under_fsdp(tmp_path):
    refuse_plain(tmp_path)  # weights only: nothing to lose
    (tmp_path / "optimizer.pt").touch()
    with pytest.raises(CheckpointError, match="was written without FSDP"):
        refuse_plain(tmp_path)
    (tmp_path / "optimizer.bin").touch()
    refuse_plain(tmp_path)
