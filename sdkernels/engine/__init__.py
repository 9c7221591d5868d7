"""The engine: heads, teachers, statistics, and per-token losses over them."""

from sdkernels.engine.heads import LMHead
from sdkernels.engine.stats import TokenStats
from sdkernels.engine.teachers import HiddenTeacher, LogitsTeacher, TopKTeacher
from sdkernels.engine.token_loss import token_loss
from sdkernels.engine.token_stats import token_stats

__all__ = [
    "HiddenTeacher",
    "LMHead",
    "LogitsTeacher",
    "TokenStats",
    "TopKTeacher",
    "token_loss",
    "token_stats",
]
