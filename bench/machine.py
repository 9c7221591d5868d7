"""What the figures depend on: processor, versions, clocks."""

from __future__ import annotations

import datetime
import os
import platform
import re
import shutil
import subprocess
import time
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

PACKAGES = (
    "torch",
    "triton",
    "sdkernels",
    "liger-kernel",
    "trl",
    "transformers",
    "flash-linear-attention",
    "verl",
    "cut-cross-entropy",
    "unsloth-zoo",
    "quack-kernels",
)
_CLOCK_FIELDS = "clocks.sm,clocks.mem,temperature.gpu,power.draw"


def machine(device: torch.device) -> dict[str, Any]:
    """Facts of this process; of a CPU with its memory, and with who gets huge pages."""
    facts: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "hardware": hardware(device),
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "memory_bytes": _memory_bytes(),
        "huge_pages": _huge_pages(),
        "system": platform.platform(),
        "python": platform.python_version(),
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        facts |= {
            "gpu": properties.name,
            "capability": f"{properties.major}.{properties.minor}",
            "gpu_memory_bytes": properties.total_memory,
            "driver_runtime": torch.version.cuda or torch.version.hip,
        }
    facts["versions"] = {package: _version(package) for package in PACKAGES}
    return facts


def hardware(device: torch.device) -> str:
    """Name for the results file: "cpu", or the GPU's as letters, digits and dashes."""
    if device.type != "cuda":
        return "cpu"
    return re.sub(r"[^a-z0-9]+", "-", torch.cuda.get_device_name(device).lower()).strip("-")


def clocks(device: torch.device) -> dict[str, Any] | None:
    """Clocks now: each core's MHz from the system; SM and memory clock, temperature and power of
    the GPU from nvidia-smi. None where neither is there.
    """
    if device.type == "cuda":
        return _gpu_clocks(device)
    found = re.findall(r"^cpu MHz\s*:\s*([\d.]+)", _cpuinfo(), flags=re.MULTILINE)
    return {"cores_mhz": [float(mhz) for mhz in found]} if found else None


class OtherLoad:
    """How much of the processor other processes take while this one measures."""

    def __init__(self) -> None:
        self._started, self._own, self._all = time.perf_counter(), _own_seconds(), _busy_seconds()

    def share(self) -> float | None:
        """Since then, of all cores; None where the system does not say."""
        now = _busy_seconds()
        if now is None or self._all is None:
            return None
        others = (now - self._all) - (_own_seconds() - self._own)
        wall = time.perf_counter() - self._started
        return max(0.0, others / (wall * (os.cpu_count() or 1)))


def _own_seconds() -> float:
    """Of this process and of those that it waited for, a compiler say."""
    return sum(os.times()[:4])


def _busy_seconds() -> float | None:
    """CPU time of all processes since the system started."""
    stat = Path("/proc/stat")
    if not stat.exists():
        return None
    user, nice, system, _idle, _iowait, irq, softirq, *_ = map(int, stat.read_text().split()[1:9])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def _gpu_clocks(device: torch.device) -> dict[str, Any] | None:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    index = torch.cuda.current_device() if device.index is None else device.index
    command = [tool, f"--id={index}", f"--query-gpu={_CLOCK_FIELDS}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=20, check=False)
    if done.returncode != 0:
        return None
    values = [value.strip() for value in done.stdout.split(",")]
    return dict(zip(_CLOCK_FIELDS.split(","), values, strict=False))


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _cpuinfo() -> str:
    info = Path("/proc/cpuinfo")
    return info.read_text() if info.exists() else ""


def _memory_bytes() -> int | None:
    names = getattr(os, "sysconf_names", {})
    if "SC_PHYS_PAGES" not in names:
        return None
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _huge_pages() -> str | None:
    """ "always", "madvise" (for those that ask, as sdkernels does) or "never"."""
    setting = Path("/sys/kernel/mm/transparent_hugepage/enabled")
    found = re.search(r"\[(\w+)\]", setting.read_text()) if setting.exists() else None
    return found[1] if found else None


def _cpu_name() -> str:
    found = re.search(r"^model name\s*:\s*(.+)$", _cpuinfo(), flags=re.MULTILINE)
    return found.group(1).strip() if found else platform.processor() or "unknown"
