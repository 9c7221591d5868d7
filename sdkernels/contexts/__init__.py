"""What the teacher sees besides the question: named builders of teacher prompts.

`get("reference_solution")` returns a `Context`: a builder with its settings and its record.
`build_prompts` makes the teacher prompts of a batch, `validate` checks a data set before training.
"""

# These fill the registry, in the order in which the contexts are listed.
# isort: off
from sdkernels.contexts import data_contexts as _data  # noqa: F401
from sdkernels.contexts import group_contexts as _group  # noqa: F401
from sdkernels.contexts import attempt_contexts as _attempt  # noqa: F401
from sdkernels.contexts import model_contexts as _model  # noqa: F401

# isort: on
from sdkernels.contexts.batch import build_batch, build_prompts, validate
from sdkernels.contexts.compose import Privileged, Section
from sdkernels.contexts.critic import CachedCritic
from sdkernels.contexts.local_critic import LocalCritic
from sdkernels.contexts.quotes import error_start
from sdkernels.contexts.registry import get, names, register, table, text_settings
from sdkernels.contexts.sample import render_sample
from sdkernels.contexts.server_critic import CriticError, ServerCritic
from sdkernels.contexts.thinking import strip_thinking
from sdkernels.contexts.types import (
    Context,
    Critic,
    Example,
    Message,
    Rollout,
    Services,
    TeacherPrompt,
    Writer,
)
from sdkernels.contexts.writer import CachedWriter

__all__ = [
    "Context",
    "Critic",
    "Writer",
    "Example",
    "Message",
    "Rollout",
    "Services",
    "TeacherPrompt",
    "get",
    "names",
    "register",
    "table",
    "text_settings",
    "render_sample",
    "build_batch",
    "build_prompts",
    "error_start",
    "validate",
    "Privileged",
    "Section",
    "strip_thinking",
    "CachedWriter",
    "CachedCritic",
    "LocalCritic",
    "ServerCritic",
    "CriticError",
]
