"""Per-token losses over the exact full vocabulary without a `[tokens, vocab]` tensor.

The engine is `token_loss` (a loss written over statistics, gradient formed in the forward pass),
`token_stats` (differentiable statistics), and the shortcuts `linear_logprob` and
`linear_divergence`. `recipes`, `gates`, `contexts`, `testing` and `train` are sub-modules, imported
when first used.
"""

import importlib
from types import ModuleType

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
    "linear_divergence",
    "linear_logprob",
    "recipes",
    "report",
    "testing",
    "token_loss",
    "token_stats",
    "train",
]

_SUBMODULES = ("contexts", "gates", "recipes", "report", "testing", "train")


def __getattr__(name: str) -> ModuleType:
    if name in _SUBMODULES:
        return importlib.import_module(f"sdkernels.{name}")
    raise AttributeError(f"module 'sdkernels' has no attribute {name!r}")
