"""TRL `trl.kernels.chunked_logprob` (log-probs and entropy from hidden states) and
`trl.kernels.logprob_entropy` (the same from whole logits; Triton only).
"""

from __future__ import annotations

from torch import Tensor

from ..formulas import clipped_surrogate
from ..peer import Call, Peer, first_of, importable, on_gpu
from ..problem import Problem

VOCAB_CHUNK = 32768  # what TRL's trainers pass


def _chunked(problem: Problem, *outputs: str) -> tuple[Tensor, Tensor]:
    from trl.kernels.chunked_logprob import ChunkedLogProbFunction

    logp_T, entropy_T, *_ = ChunkedLogProbFunction.apply(
        problem.hidden_TD,
        problem.weight_VD,
        None,
        problem.tokens.targets,
        1.0,
        VOCAB_CHUNK,
        None,
        1.0,
        outputs,
    )
    return logp_T, entropy_T


def _chunked_outputs(problem: Problem) -> tuple[Tensor, Tensor]:
    return _chunked(problem, "entropy")


def _whole_outputs(problem: Problem) -> tuple[Tensor, Tensor]:
    from trl.kernels.logprob_entropy import selective_log_softmax_and_entropy

    logits_TV = problem.hidden_TD @ problem.weight_VD.t()
    return selective_log_softmax_and_entropy(logits_TV, problem.tokens.targets)


def _weighted(outputs: Call) -> Call:
    def call(problem: Problem) -> Tensor:
        logp_T, entropy_T = outputs(problem)
        tok = problem.tokens
        return (tok.logp_weight * logp_T + tok.entropy_weight * entropy_T).sum()

    return call


PEERS = [
    Peer(
        "trl-logprob",
        "TRL chunked_logprob",
        {
            "logprob-entropy-forward": _chunked_outputs,
            "logprob-entropy": _weighted(_chunked_outputs),
            "nll": lambda problem: -_chunked(problem)[0].sum(),
            "grpo": lambda problem: clipped_surrogate(_chunked(problem)[0], problem.tokens).sum(),
        },
        importable("trl.kernels.chunked_logprob", "trl"),
    ),
    Peer(
        "trl-logprob-entropy",
        "TRL logprob_entropy on whole logits",
        {"logprob-entropy-forward": _whole_outputs, "logprob-entropy": _weighted(_whole_outputs)},
        first_of(on_gpu, importable("trl.kernels.logprob_entropy", "trl")),
        logits_copies=2.0,
    ),
]
