"""QuACK `chunked_linear_cross_entropy`: CuTe kernels for Hopper and Blackwell."""

from __future__ import annotations

import torch
from torch import Tensor

from ..peer import Peer, first_of, importable, in_16_bit, on_gpu
from ..problem import Problem, Setting


def _architecture(setting: Setting) -> str | None:
    major, minor = torch.cuda.get_device_capability(setting.device)
    return None if major >= 9 else f"has kernels for sm_90 and newer, this is sm_{major}{minor}"


def _nll(problem: Problem) -> Tensor:
    from quack.linear_cross_entropy import chunked_linear_cross_entropy

    return chunked_linear_cross_entropy(
        problem.hidden_TD, problem.weight_VD, problem.tokens.targets, reduction="sum"
    )


PEERS = [
    Peer(
        "quack",
        "QuACK chunked_linear_cross_entropy",
        {"nll": _nll},
        first_of(
            on_gpu,
            in_16_bit,
            _architecture,
            importable("quack.linear_cross_entropy", "quack-kernels"),
        ),
    )
]
