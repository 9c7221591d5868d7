"""Peers: a few lines each that run the same case through another implementation.

A peer is a module with `TITLE`, `unavailable() -> str | None` (why it cannot run here) and
`run(case) -> float`, which leaves gradients in `case.hidden_TD.grad` and `case.weight_VD.grad` and
returns the loss.
"""

from __future__ import annotations

import importlib
from types import ModuleType

PEERS = ("sdkernels_", "liger_jsd", "liger_jsd_compiled", "trl_divergence", "eager")


def load(name: str) -> ModuleType:
    """The peer's module."""
    return importlib.import_module(f"bench.peers.{name}")


def missing(module: str) -> str | None:
    """Reason why a package cannot be imported, None when it can."""
    try:
        importlib.import_module(module)
    except ImportError as error:
        return f"not installed ({error}); pip install -e .[bench]"
    return None
