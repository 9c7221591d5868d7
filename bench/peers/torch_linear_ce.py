"""PyTorch 2.13 `F.linear_cross_entropy`: whole logits by default, chunked with options."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..peer import Call, Peer
from ..problem import Problem, Setting


def _unavailable(_: Setting) -> str | None:
    if hasattr(F, "linear_cross_entropy"):
        return None
    return f"torch {torch.__version__} has no F.linear_cross_entropy; it came with 2.13"


def _nll(*, chunked: bool) -> Call:
    def call(problem: Problem) -> Tensor:
        return F.linear_cross_entropy(
            problem.hidden_TD,
            problem.weight_VD,
            problem.tokens.targets,
            reduction="sum",
            options=torch.nn.LinearCrossEntropyOptions() if chunked else None,
        )

    return call


PEERS = [
    Peer(
        "torch-linear-ce",
        "F.linear_cross_entropy",
        {"nll": _nll(chunked=False)},
        _unavailable,
        logits_copies=3.0,
    ),
    Peer(
        "torch-linear-ce-chunked",
        "F.linear_cross_entropy, chunked",
        {"nll": _nll(chunked=True)},
        _unavailable,
    ),
]
