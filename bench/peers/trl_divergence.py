"""TRL `trl.kernels.chunked_divergence`: Triton on GPUs, its torch path elsewhere. Beta 0 and 1 are
KL(T||S) and KL(S||T) there.
"""

from __future__ import annotations

from torch import Tensor

from ..peer import Call, Peer, importable
from ..problem import Problem

_BETAS = {"kl-teacher-student": 0.0, "kl-student-teacher": 1.0, "jsd": 0.5}


def _divergence(beta: float) -> Call:
    def call(problem: Problem) -> Tensor:
        from trl.kernels.chunked_divergence import ChunkedDivergenceFunction

        divergence_T, _ = ChunkedDivergenceFunction.apply(
            problem.hidden_TD,
            problem.weight_VD,
            None,
            problem.teacher_hidden_TD,
            problem.teacher_weight_VD,
            None,
            beta,
        )
        return divergence_T.sum()

    return call


PEERS = [
    Peer(
        "trl-divergence",
        "TRL chunked_divergence",
        {case: _divergence(beta) for case, beta in _BETAS.items()},
        importable("trl.kernels.chunked_divergence", "trl"),
    )
]
