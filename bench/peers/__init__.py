"""Peers: modules of a few lines, each with `PEERS`, that run the cases through another library.

A new one is a module here and its name in `MODULES`. It is compared with the float64 answer before
it is timed; where it is not installed or cannot run, its row says so.
"""

from __future__ import annotations

import importlib

from ..names import pick
from ..peer import Peer

MODULES = (
    "own",
    "eager",
    "compiled_chunks",
    "torch_linear_ce",
    "liger_chunked",
    "liger_jsd",
    "liger_kl",
    "liger_ce",
    "liger_logprob",
    "liger_grpo",
    "trl_divergence",
    "trl_logprob",
    "trl_losses",
    "fla_kl",
    "verl_ce",
    "cce",
    "unsloth",
    "quack",
)


def load() -> dict[str, Peer]:
    """All peers by name, sdkernels first."""
    modules = [importlib.import_module(f".{name}", __name__) for name in MODULES]
    return {peer.name: peer for module in modules for peer in module.PEERS}


def select(names: list[str] | None, case: str) -> list[Peer]:
    """The peers called `names`, also where they lack the case; None: all that have it.

    Raises:
        ValueError: an unknown name; the message suggests the nearest. A name that comes twice:
            both rows would share their times.
    """
    known = load()
    if names is None:
        return [peer for peer in known.values() if case in peer.calls]
    found = [pick("peer", name, known) for name in names]
    for name in found:
        if found.count(name) > 1:
            raise ValueError(f"peer {name!r} comes {found.count(name)} times; name it once")
    return [known[name] for name in found]
