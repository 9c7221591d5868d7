"""Apple's cut-cross-entropy: with its gradient filter (the default) and without; and the version
compiled by torch that it falls back to.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..peer import Call, Peer, can_compile, first_of, importable, in_16_bit, on_gpu
from ..problem import Problem

_installed = importable("cut_cross_entropy", "cut-cross-entropy")


def _nll(**options: Any) -> Call:
    def call(problem: Problem) -> Tensor:
        from cut_cross_entropy import linear_cross_entropy

        return linear_cross_entropy(
            problem.hidden_TD,
            problem.weight_VD,
            problem.tokens.targets,
            reduction="sum",
            **options,
        )

    return call


PEERS = [
    Peer(
        "cce",
        "cut-cross-entropy",
        {"nll": _nll(impl="cce")},
        first_of(on_gpu, in_16_bit, _installed),
    ),
    Peer(
        "cce-exact",
        "cut-cross-entropy, no filter",
        {"nll": _nll(impl="cce", filter_eps=None)},
        first_of(on_gpu, in_16_bit, _installed),
    ),
    Peer(
        "cce-compiled",
        "cut-cross-entropy, torch_compile",
        {"nll": _nll(impl="torch_compile")},
        first_of(can_compile, _installed),
        logits_copies=3.0,
    ),
]
