"""What the teacher sees besides the question: named builders of teacher prompts."""

from sdkernels.contexts.types import Context, Critic, Example, Message, Rollout, Services

__all__ = ["Context", "Critic", "Example", "Message", "Rollout", "Services"]
