"""verl `linear_cross_entropy`: log-probs and entropy, Triton."""

from __future__ import annotations

from torch import Tensor

from ..formulas import clipped_surrogate
from ..peer import Peer, first_of, importable, on_gpu
from ..problem import Problem, Setting


def _alignment(setting: Setting) -> str | None:
    if setting.shape.hidden % 128 == 0:
        return None
    return f"takes hidden sizes that are multiples of 128, not {setting.shape.hidden}"


def _outputs(problem: Problem) -> tuple[Tensor, Tensor]:
    from verl.utils.kernel.linear_cross_entropy import linear_cross_entropy

    logp_T, entropy_T = linear_cross_entropy(
        problem.hidden_TD, problem.weight_VD, problem.tokens.targets, 1.0, "none", None
    )
    return logp_T, entropy_T


def _nll(problem: Problem) -> Tensor:
    # Not `.sum()` alone: its gradient is expanded, and verl's backward pass asserts that it is
    # contiguous.
    logp_T, _ = _outputs(problem)
    return (logp_T * logp_T.new_full(logp_T.shape, -1.0)).sum()


def _weighted(problem: Problem) -> Tensor:
    logp_T, entropy_T = _outputs(problem)
    tok = problem.tokens
    return (tok.logp_weight * logp_T + tok.entropy_weight * entropy_T).sum()


PEERS = [
    Peer(
        "verl",
        "verl linear_cross_entropy",
        {
            "logprob-entropy-forward": _outputs,
            "logprob-entropy": _weighted,
            "nll": _nll,
            "grpo": lambda problem: clipped_surrogate(_outputs(problem)[0], problem.tokens).sum(),
        },
        first_of(on_gpu, _alignment, importable("verl.utils.kernel.linear_cross_entropy", "verl")),
    )
]
