"""Row passes over logits: statistics and gradients, behind one small interface with three
implementations.

`torch_rows` (plain torch) runs everywhere and is the oracle in float64. `triton_rows` runs the
Triton kernels of `sdkernels.kernels` on GPUs; "auto" takes it wherever it can run, but for float64
and for CPU tensors. `compiled_rows` is plain torch through torch.compile, by hand only.
"""

from __future__ import annotations

import logging

import torch

from sdkernels.kernels import unavailable_reason
from sdkernels.rows.compiled_rows import CompiledRows
from sdkernels.rows.interface import RowBackend, RowGate, RowSpec, Side, slab_columns
from sdkernels.rows.torch_rows import TorchRows

__all__ = [
    "BACKENDS",
    "RowBackend",
    "RowGate",
    "RowSpec",
    "Side",
    "slab_columns",
    "resolve_backend",
]

BACKENDS = ("auto", "triton", "torch", "compiled")

logger = logging.getLogger("sdkernels")
_announced: set[tuple[str, str, str]] = set()


def resolve_backend(
    backend: str, device: torch.device, compute_dtype: torch.dtype = torch.float32
) -> RowBackend:
    """The row backend for `device`; says once per process and device type which one runs and why.

    Raises:
        ValueError: unknown `backend`, or a forced backend that cannot run here.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend={backend!r}: accepted are {', '.join(map(repr, BACKENDS))}")
    if backend == "torch":
        return _chosen(TorchRows(), device, "asked for")
    if backend == "compiled":
        if device.type != "cpu":
            raise ValueError(
                "backend='compiled' cannot run: it is for CPU tensors, these are on "
                f"{device.type}. Use backend='auto'"
            )
        return _chosen(CompiledRows(), device, "asked for")
    reason = unavailable_reason(device)
    if reason is None and compute_dtype == torch.float64:
        reason = "the Triton kernels do not compute in float64"
    if backend == "triton":
        if reason is not None:
            raise ValueError(
                f"backend='triton' cannot run: {reason}. Use backend='auto' or 'torch'"
            )
        return _chosen(_triton_rows(), device, "asked for")
    if reason is None and device.type == "cpu":
        reason = "Triton's interpreter is for tests, backend='triton' asks for it"
    if reason is not None:
        return _chosen(TorchRows(), device, reason)
    return _chosen(_triton_rows(), device, "Triton runs here")


def _triton_rows() -> RowBackend:
    # Not at the top: importing sdkernels must not import Triton.
    from sdkernels.rows.triton_rows import TritonRows

    return TritonRows()


def _chosen(rows: RowBackend, device: torch.device, why: str) -> RowBackend:
    # With the reason: what was asked for once must not keep "auto" from saying what it takes.
    if (device.type, rows.name, why) not in _announced:
        _announced.add((device.type, rows.name, why))
        logger.info("sdkernels: %s rows on %s (%s)", rows.name, device.type, why)
    return rows
