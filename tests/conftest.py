"""What every test gets: a fixed seed, no network, and GPU tests skipped where there is no GPU."""

import os

# Before anything imports them: the suite never asks a hub or opens a window.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

# Where there is no device for the Triton kernels they run in Triton's interpreter. Triton reads
# this when a kernel is defined, so it comes before any test module; compile-only tests start a
# process without it.
if not torch.accelerator.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip `gpu` and `multigpu` tests where there are too few devices, and say so."""
    devices = torch.accelerator.device_count() if torch.accelerator.is_available() else 0
    for item in items:
        needed = 2 if item.get_closest_marker("multigpu") else 1
        marked = item.get_closest_marker("gpu") or item.get_closest_marker("multigpu")
        if marked and devices < needed:
            reason = f"needs {needed} accelerator device(s), this machine has {devices}"
            item.add_marker(pytest.mark.skip(reason=reason))


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
