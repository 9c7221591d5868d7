"""Device code that reduces over the vocabulary, imported as `sdkernels.kernels`.

Triton kernels and their launchers, one idea a file; `merge` joins partial sums, whoever made them.
Code in this package imports torch, triton and its own siblings by relative import, nothing else.
Importing the package itself imports neither Triton nor a kernel.
"""

from __future__ import annotations

import os

import torch

__all__ = ["MINIMUM_TRITON", "triton_reason", "unavailable_reason"]

MINIMUM_TRITON = (3, 6)
DEVICE_TYPES = ("cuda", "xpu")  # torch calls ROCm devices "cuda" too


def triton_reason() -> str | None:
    """Why the kernels can't be imported, whatever the device, in one line; None: they can."""
    try:
        import triton
    except Exception as error:  # a broken package raises what it likes
        if isinstance(error, ModuleNotFoundError) and error.name == "triton":
            return "Triton is not installed (pip install triton)"
        return f"importing Triton fails with {type(error).__name__}: {error}"
    version = getattr(triton, "__version__", None)
    if version is None:
        # A folder of that name on the path, which Python imports as a package without contents.
        return f"what is imported as triton is not Triton, but {triton!r}: it has no __version__"
    found = tuple(int(part) for part in version.split(".")[:2])
    if found < MINIMUM_TRITON:
        wanted = ".".join(map(str, MINIMUM_TRITON))
        return f"Triton {version} is too old, {wanted} or newer is needed"
    return None


def unavailable_reason(device: torch.device | None = None) -> str | None:
    """Why the kernels can't run on `device`, in one line; None: they can.

    Without `device`: whether any device of this machine can run them. CPU tensors are only served
    by Triton's interpreter (TRITON_INTERPRET=1 before Triton is imported), which is for tests.
    """
    reason = triton_reason()
    if reason is not None:
        return reason
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
