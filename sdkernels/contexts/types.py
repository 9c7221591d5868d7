"""The data that travels between data sets, rollouts, context builders and the trainer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from sdkernels.contexts.compose import Privileged, compose

Message = dict[str, str]  # {"role": "system" | "user" | "assistant", "content": ...}


@dataclass(frozen=True)
class Example:
    """One problem of a data set.

    `prompt` is what the student sees and ends with a user turn. `task` names the verifier family
    (`"number"`, `"math"`, `"string"`, `"reasoning_gym/chain_sum"`, or `""` to infer it from the
    answer). `metadata["row"]`, where present, says in words where the example came from.
    """

    id: str
    prompt: list[Message]
    answer: str | None = None
    solution: str | None = None
    hint: str | None = None
    feedback: str | None = None
    task: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)


@dataclass
class Rollout:
    """One response of the student. `reward`, `success`, `extracted`, `feedback` come from verify.

    `text` is the decoded response without special tokens, `token_ids` are the sampled ids (a final
    end-of-turn token included), `truncated` says that the length limit ended it.
    """

    example_id: str
    index: int
    text: str
    token_ids: list[int]
    truncated: bool = False
    reward: float | None = None
    success: bool | None = None
    extracted: str | None = None
    feedback: str | None = None


class Critic(Protocol):
    """A frozen model that corrects a student's attempt step by step."""

    def critique(self, pairs: Sequence[tuple[Example, Rollout]]) -> list[str | None]:
        """One correction per pair, in order; None where the critic gave nothing usable."""
        ...


@dataclass
class Services:
    """What a builder may use besides its arguments.

    `max_context_tokens` bounds the privileged part of a teacher prompt (never the question, never
    the closing instruction); it needs `tokenizer`. `counts` collects what happened on the way:
    `truncated`, `empty`, `unusable_critique` (rows).
    """

    tokenizer: Any = None
    critic: Critic | None = None
    max_context_tokens: int | None = None
    counts: Counter[str] = field(default_factory=Counter)


Builder = Callable[..., "Privileged | None"]


@dataclass(frozen=True)
class Context:
    """What the teacher sees besides the question: a builder, its settings and its record.

    The record: `needs` are the example fields it cannot work without (`"a|b"`: either one),
    `order` and `roles` say where the context stands in the prompt, `truncation` which side is cut
    when it is too long, `on_empty` when it gives no signal, `thinking` what becomes of think
    blocks, `leaks_answer` whether the right answer can be read off the context, and `generates`
    whether building it runs a model.
    """

    name: str
    summary: str
    source: str
    build: Builder = field(repr=False)
    needs: tuple[str, ...] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)
    leaks_answer: bool = False
    generates: bool = False
    on_empty: str = "never empty"
    order: str = "question, context, closing instruction"
    roles: str = "system and earlier turns kept; the context joins the last user turn"
    truncation: str = "right"
    thinking: str = "not applicable"

    def __call__(
        self,
        example: Example,
        rollout: Rollout,
        group: Sequence[Rollout] = (),
        services: Services | None = None,
    ) -> list[Message] | None:
        """The teacher's messages for one rollout, or None: no signal, the row has weight 0.

        `group` are all rollouts of the same example (`rollout` may be among them).
        """
        services = services or Services()
        privileged = self.build(example, rollout, group, services, **self.settings)
        if privileged is None:
            services.counts["empty"] += 1
            return None
        return compose(
            example.prompt,
            privileged,
            tokenizer=services.tokenizer,
            max_tokens=services.max_context_tokens,
            counts=services.counts,
        )

    def missing(self, example: Example) -> list[str]:
        """Entries of `needs` that the example has no text for."""
        return [
            need
            for need in self.needs
            if not any((getattr(example, name) or "").strip() for name in need.split("|"))
        ]
