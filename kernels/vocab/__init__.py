"""Device code that reduces over the vocabulary, imported as `sdkernels.kernels`.

Triton kernels and their launchers, one idea a file; `merge` joins partial sums, whoever made them.
Code in this package imports torch, triton and its own siblings by relative import, nothing else.
Importing the package itself imports neither Triton nor a kernel.
"""

from __future__ import annotations

import importlib.util
import os

import torch

__all__ = ["MINIMUM_TRITON", "unavailable_reason"]

MINIMUM_TRITON = (3, 6)
DEVICE_TYPES = ("cuda", "xpu")  # torch calls ROCm devices "cuda" too


def unavailable_reason(device: torch.device | None = None) -> str | None:
    """Why the kernels can't run on `device`, in one line; None: they can.

    Without `device`: whether any device of this machine can run them. CPU tensors are only served
    by Triton's interpreter (TRITON_INTERPRET=1 before Triton is imported), which is for tests.
    """
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed (pip install triton)"
    import triton

    found = tuple(int(part) for part in triton.__version__.split(".")[:2])
    if found < MINIMUM_TRITON:
        wanted = ".".join(map(str, MINIMUM_TRITON))
        return f"Triton {triton.__version__} is too old, {wanted} or newer is needed"
    if device is None:
        here = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
        device = torch.device("cpu") if here is None else here
    if device.type == "cpu":
        if os.environ.get("TRITON_INTERPRET") == "1":
            return None
        return "the tensors are on the CPU, where only Triton's interpreter runs (for tests)"
    if device.type not in DEVICE_TYPES:
        return f"no Triton kernels for {device.type} devices; there are for {DEVICE_TYPES}"
    return None
