"""Liger `FusedLinearCrossEntropy`, with its default chunk constant of 1 and raised to 16."""

from __future__ import annotations

from torch import Tensor

from ..peer import Call, Peer, first_of, importable, on_gpu
from ..problem import Problem

IGNORE = -100


def _nll(chunk_constant: int) -> Call:
    def call(problem: Problem) -> Tensor:
        from liger_kernel.ops import LigerFusedLinearCrossEntropyFunction

        # The constant is the last of 18 positional arguments; those before have their defaults.
        loss, *_ = LigerFusedLinearCrossEntropyFunction.apply(
            problem.hidden_TD,
            problem.weight_VD,
            problem.tokens.targets,
            *(None, None, IGNORE, 0.0, 0.0, "sum", None),
            *(False, None, False, False, False, None, None),
            chunk_constant,
        )
        return loss

    return call


PEERS = [
    Peer(
        f"liger-ce-{constant}",
        f"Liger FusedLinearCrossEntropy, constant {constant}",
        {"nll": _nll(constant)},
        first_of(on_gpu, importable("liger_kernel.ops", "liger-kernel")),
    )
    for constant in (1, 16)
]
