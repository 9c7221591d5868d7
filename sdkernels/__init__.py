"""Per-token losses over the exact full vocabulary without a `[tokens, vocab]` tensor.

The engine is `token_loss` (a loss written over statistics, gradient formed in the forward pass),
`token_stats` (differentiable statistics), and the shortcuts `linear_logprob` and
`linear_divergence`. `recipes`, `gates`, `contexts`, `testing`, `train` and `integrations` are
sub-modules, imported when first used; so is `patch(model)`, which puts the engine under a Hugging
Face model's own loss.
"""

import importlib
from typing import Any

from sdkernels._version import __version__
from sdkernels.engine import (
    HiddenTeacher,
    LMHead,
    LogitsTeacher,
    TokenStats,
    TopKTeacher,
    token_loss,
    token_stats,
)
from sdkernels.ops import linear_divergence, linear_logprob

__all__ = [
    "HiddenTeacher",
    "LMHead",
    "LogitsTeacher",
    "TokenStats",
    "TopKTeacher",
    "__version__",
    "contexts",
    "gates",
    "integrations",
    "linear_divergence",
    "linear_logprob",
    "patch",
    "recipes",
    "report",
    "testing",
    "token_loss",
    "token_stats",
    "train",
]

_SUBMODULES = (
    "contexts",
    "gates",
    "integrations",
    "recipes",
    "report",
    "testing",
    "train",
)


def __getattr__(name: str) -> Any:
    if name == "patch":
        return importlib.import_module("sdkernels.integrations.huggingface.causal_lm").patch
    if name in _SUBMODULES:
        return importlib.import_module(f"sdkernels.{name}")
    raise AttributeError(f"module 'sdkernels' has no attribute {name!r}")
