"""unsloth-zoo's fused linear losses (LGPL / AGPL: called here for comparison, nothing else)."""

from __future__ import annotations

from torch import Tensor

from ..formulas import clipped_surrogate
from ..peer import Call, Peer, importable
from ..problem import Problem

_BETAS = {"kl-teacher-student": 0.0, "kl-student-teacher": 1.0, "jsd": 0.5}


def _divergence(beta: float) -> Call:
    def call(problem: Problem) -> Tensor:
        from unsloth_zoo.fused_losses.fused_linear import fused_linear_jsd

        return fused_linear_jsd(
            problem.hidden_TD,
            problem.weight_VD,
            problem.teacher_hidden_TD,
            problem.teacher_weight_VD,
            beta=beta,
            num_items_in_batch=1,
        )

    return call


def _nll(problem: Problem) -> Tensor:
    from unsloth_zoo.fused_losses.fused_linear import fused_linear_cross_entropy

    return fused_linear_cross_entropy(
        problem.hidden_TD, problem.weight_VD, None, problem.tokens.targets, divisor=1
    )


def _outputs(problem: Problem) -> tuple[Tensor, Tensor]:
    from unsloth_zoo.fused_losses.fused_linear import fused_linear_logprobs

    return fused_linear_logprobs(
        problem.hidden_TD, problem.weight_VD, problem.tokens.targets, return_entropy=True
    )


def _weighted(problem: Problem) -> Tensor:
    logp_T, entropy_T = _outputs(problem)
    tok = problem.tokens
    return (tok.logp_weight * logp_T + tok.entropy_weight * entropy_T).sum()


def _grpo(problem: Problem) -> Tensor:
    from unsloth_zoo.fused_losses.fused_linear import fused_linear_logprobs

    logp_T = fused_linear_logprobs(problem.hidden_TD, problem.weight_VD, problem.tokens.targets)
    return clipped_surrogate(logp_T, problem.tokens).sum()


PEERS = [
    Peer(
        "unsloth",
        "unsloth-zoo fused_linear",
        {
            "logprob-entropy-forward": _outputs,
            "logprob-entropy": _weighted,
            "nll": _nll,
            "grpo": _grpo,
            **{case: _divergence(beta) for case, beta in _BETAS.items()},
        },
        importable("unsloth_zoo.fused_losses.fused_linear", "unsloth-zoo"),
    )
]
