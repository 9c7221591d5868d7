"""Liger `FusedLinearScaledCrossEntropy`: per-token NLL and entropy. CuTe on Hopper in bfloat16,
eager chunks of 512 tokens elsewhere.
"""

from __future__ import annotations

from torch import Tensor

from ..formulas import clipped_surrogate
from ..peer import Peer, importable
from ..problem import Problem


def _apply(problem: Problem, *, entropy: bool) -> Tensor | tuple[Tensor, Tensor]:
    from liger_kernel.ops import LigerFusedLinearScaledCrossEntropyFunction

    return LigerFusedLinearScaledCrossEntropyFunction.apply(
        problem.hidden_TD, problem.weight_VD, problem.tokens.targets, return_entropy=entropy
    )


def _outputs(problem: Problem) -> tuple[Tensor, Tensor]:
    nll_T, entropy_T = _apply(problem, entropy=True)
    return -nll_T, entropy_T


def _nll(problem: Problem) -> Tensor:
    loss_T = _apply(problem, entropy=False)
    assert isinstance(loss_T, Tensor)
    return loss_T.sum()


def _weighted(problem: Problem) -> Tensor:
    logp_T, entropy_T = _outputs(problem)
    tok = problem.tokens
    return (tok.logp_weight * logp_T + tok.entropy_weight * entropy_T).sum()


def _grpo(problem: Problem) -> Tensor:
    loss_T = _apply(problem, entropy=False)
    assert isinstance(loss_T, Tensor)
    return clipped_surrogate(-loss_T, problem.tokens).sum()


PEERS = [
    Peer(
        "liger-logprob",
        "Liger FusedLinearScaledCrossEntropy",
        {
            "logprob-entropy-forward": _outputs,
            "logprob-entropy": _weighted,
            "nll": _nll,
            "grpo": _grpo,
        },
        importable("liger_kernel.ops", "liger-kernel"),
    )
]
