"""What the teacher sees besides the question: named builders of teacher prompts.

`get("reference_solution")` returns a `Context`: a builder with its settings and its record.
`build_batch` makes the teacher prompts of a batch, `validate` checks a data set before training.
"""

from sdkernels.contexts import builders as _builders  # noqa: F401  fills the registry
from sdkernels.contexts.batch import build_batch, validate
from sdkernels.contexts.compose import Privileged, Section
from sdkernels.contexts.critic import CachedCritic
from sdkernels.contexts.local_critic import LocalCritic
from sdkernels.contexts.registry import get, names, register, table
from sdkernels.contexts.sample import render_sample
from sdkernels.contexts.server_critic import CriticError, ServerCritic
from sdkernels.contexts.thinking import strip_thinking
from sdkernels.contexts.types import Context, Critic, Example, Message, Rollout, Services

__all__ = [
    "Context",
    "Critic",
    "Example",
    "Message",
    "Rollout",
    "Services",
    "get",
    "names",
    "register",
    "table",
    "render_sample",
    "build_batch",
    "validate",
    "Privileged",
    "Section",
    "strip_thinking",
    "CachedCritic",
    "LocalCritic",
    "ServerCritic",
    "CriticError",
]
