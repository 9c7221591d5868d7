"""What the figures depend on."""

import os
import subprocess
import sys

import pytest
import torch

from sdkernels.bench import machine

CPU = torch.device("cpu")


def test_facts_name_versions_also_of_what_is_not_there(monkeypatch):
    monkeypatch.setattr(machine, "PACKAGES", ("torch", "no-such-package"))
    facts = machine.machine(CPU)
    assert facts["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert facts["versions"]["no-such-package"] is None
    assert facts["threads"] == torch.get_num_threads()
    assert facts["hardware"] == "cpu"
    assert facts["cpu"]


def test_the_file_of_a_gpu_is_named_after_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H200 (80GB)/x")
    assert machine.hardware(torch.device("cuda")) == "nvidia-h200-80gb-x"


def test_clocks_of_the_cores(monkeypatch):
    text = "processor : 0\ncpu MHz\t\t: 2596.122\nprocessor : 1\ncpu MHz\t\t: 1000.5\n"
    monkeypatch.setattr(machine, "_cpuinfo", lambda: text)
    assert machine.clocks(CPU) == {"cores_mhz": [2596.122, 1000.5]}
    monkeypatch.setattr(machine, "_cpuinfo", str)
    assert machine.clocks(CPU) is None


def test_clocks_of_a_gpu_come_from_its_tool(monkeypatch, tmp_path):
    tool = tmp_path / "nvidia-smi"
    tool.write_text("#!/bin/sh\necho '1980 MHz, 3201 MHz, 41, 120.5 W'\n")
    tool.chmod(0o755)
    monkeypatch.setattr(machine.shutil, "which", lambda name: str(tool))
    found = machine.clocks(torch.device("cuda", 0))
    assert found["clocks.sm"] == "1980 MHz"
    assert found["power.draw"] == "120.5 W"
    tool.write_text("#!/bin/sh\nexit 9\n")
    assert machine.clocks(torch.device("cuda", 0)) is None
    monkeypatch.setattr(machine.shutil, "which", lambda name: None)
    assert machine.clocks(torch.device("cuda", 0)) is None


def test_the_share_of_other_processes(monkeypatch):
    monkeypatch.setattr(os, "cpu_count", lambda: 2)
    clock, own, everybody = iter([10.0, 20.0]), iter([100.0, 108.0]), iter([500.0, 513.0])
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(clock))
    monkeypatch.setattr(machine, "_own_seconds", lambda: next(own))
    monkeypatch.setattr(machine, "_busy_seconds", lambda: next(everybody))
    # 13 s of 20 were taken, 8 of them by this process.
    assert machine.OtherLoad().share() == pytest.approx(0.25)


def test_busy_time_has_this_process_and_its_children_in_it():
    before = machine._busy_seconds()
    if before is None:
        pytest.skip("this system does not tell the time of all processes")
    own = machine._own_seconds()
    spinning = "import time; end = time.time() + 0.5\nwhile time.time() < end: pass"
    subprocess.run([sys.executable, "-c", spinning], check=True)
    taken = machine._own_seconds() - own
    assert taken > 0.05
    assert machine._busy_seconds() - before > taken - 0.1  # it is counted in hundredths a core


def test_a_system_without_such_times_gives_none(monkeypatch):
    monkeypatch.setattr(machine, "_busy_seconds", lambda: None)
    assert machine.OtherLoad().share() is None
