"""Row passes over logits: statistics and gradients, behind one small interface with two
implementations.

`torch_rows` (plain torch) runs everywhere and is the oracle in float64. The Triton kernels of
`sdkernels.kernels` have their place here as soon as they ship; until then asking for them is an
error that says so.
"""

from __future__ import annotations

import logging

import torch

from sdkernels.kernels import unavailable_reason
from sdkernels.rows.interface import RowBackend, RowSpec, Side
from sdkernels.rows.torch_rows import TorchRows

__all__ = ["BACKENDS", "RowBackend", "RowSpec", "Side", "resolve_backend"]

BACKENDS = ("auto", "triton", "torch")

logger = logging.getLogger("sdkernels")
_announced: set[str] = set()


def resolve_backend(backend: str, device: torch.device) -> RowBackend:
    """The row backend for `device`; says once per process and device type which one runs and why.

    Raises:
        ValueError: unknown `backend`, or a forced backend that cannot run here.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: accepted are {', '.join(map(repr, BACKENDS))}")
    reason = unavailable_reason()
    if backend == "triton":
        raise ValueError(f"backend='triton' cannot run: {reason}. Use backend='auto' or 'torch'")
    if device.type not in _announced:
        _announced.add(device.type)
        why = "asked for" if backend == "torch" else reason
        logger.info("sdkernels: torch rows on %s (%s)", device.type, why)
    return TorchRows()
