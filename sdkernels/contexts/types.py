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

    `prompt` is what the student sees and ends with a user turn. `solution` is the data set's own
    reference, `stronger_solution` one that a stronger model wrote. `task` names the verifier family
    (`"number"`, `"math"`, `"string"`, `"reasoning_gym/chain_sum"`, or `""` to infer it from the
    answer). `metadata["row"]`, where present, says in words where the example came from.
    `solution_truncated` says that a length limit ended `solution`, so that nobody who trains on it
    may put an end-of-turn token behind it.
    """

    id: str
    prompt: list[Message]
    answer: str | None = None
    solution: str | None = None
    stronger_solution: str | None = None
    hint: str | None = None
    feedback: str | None = None
    task: str = ""
    metadata: dict[str, Any] = field(default_factory=dict)
    solution_truncated: bool = False


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


class Writer(Protocol):
    """A model that answers prompts, for contexts that show the teacher a generated text."""

    def write(self, prompts: Sequence[list[Message]]) -> list[str | None]:
        """One answer per conversation, in order; None where the model gave none."""
        ...


@dataclass
class Services:
    """What a builder may use besides its arguments.

    `critic` corrects attempts, `writer` answers prompts; a critic that can `write` is the writer
    where no other is given. `max_context_tokens` bounds the privileged part of a teacher prompt
    (never the question, never the closing instruction); it needs `tokenizer`. `pool` are problems
    to show as demonstrations. `counts` collects what happened on the way, in rows: `truncated`,
    `empty`, `unusable_critique`, `unaligned_critique`, `unwritten`, `unusable_reflection`,
    `quote_not_found`.
    """

    tokenizer: Any = None
    critic: Critic | None = None
    max_context_tokens: int | None = None
    counts: Counter[str] = field(default_factory=Counter)
    writer: Writer | None = None
    pool: Sequence[Example] = ()

    def the_writer(self) -> Writer | None:
        """Who answers prompts, or None."""
        if self.writer is not None:
            return self.writer
        return self.critic if hasattr(self.critic, "write") else None  # type: ignore[return-value]


@dataclass(frozen=True)
class TeacherPrompt:
    """What the trainer gets for one rollout.

    `negatives` (context `contrastive`): prompts of the other side, at least one, in the same words.
    `error_quote` (context `self_reflection`): the words of the response where it first goes wrong;
    see `error_start`.
    """

    messages: list[Message]
    negatives: tuple[list[Message], ...] = ()
    error_quote: str | None = None


def has_text(example: Example, need: str) -> bool:
    """Whether the example has text in the field `need`, or for `"a|b"` in one of them."""
    return any((getattr(example, name) or "").strip() for name in need.split("|"))


Builder = Callable[..., "Privileged | None"]
Asker = Callable[..., "list[Message] | None"]


@dataclass(frozen=True)
class Context:
    """What the teacher sees besides the question: a builder, its settings and its record.

    The record: `made_of` says what the context is built from (`"nothing"`, `"data"`, `"attempt"`:
    the response itself, `"group"`: other responses to the same problem, `"model"`: text that a
    model writes for it). `reads_responses` says whether a response, or its verdict, has a part in
    what is shown or in whether anything is, so that the rows with something to show are no fair
    sample of all. `needs` are the example fields it cannot work without (`"a|b"`: either
    one), an `answer` to verify responses with among them; `least_group` is the smallest group, the
    response itself included, in which it can have something to show.
    `order` and `roles` say where the context stands in the prompt, `truncation` which side is
    cut when it is too long, `on_empty` when it gives no signal, `thinking` what becomes of think
    blocks, `leaks_answer` whether the right answer can stand in the context by construction (what
    a model or a verifier writes may always name it), and `generates` whether building it runs a
    model. A context with `ask` has a text written first, which its builder gets as `reply`.
    """

    name: str
    summary: str
    source: str
    build: Builder = field(repr=False)
    ask: Asker | None = field(default=None, repr=False)
    made_of: str = "data"
    reads_responses: bool = False
    needs: tuple[str, ...] = ()
    least_group: int = 1
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

        `group` are all rollouts of the same example (`rollout` may be among them). A context that
        generates asks the model for this row alone; `build_prompts` asks once for a whole batch.
        """
        services = services or Services()
        reply = None
        if self.ask is not None:
            request = self.request(example, rollout, group, services)
            reply = None if request is None else written(self, [request], services)[0]
        prompt = self.prompt(example, rollout, group, services, reply=reply)
        return None if prompt is None else prompt.messages

    def request(
        self, example: Example, rollout: Rollout, group: Sequence[Rollout], services: Services
    ) -> list[Message] | None:
        """What the writer is asked for this row; None: nothing, the row has no signal."""
        if self.ask is None:
            return None
        return self.ask(example, rollout, group, services, **self.settings)

    def prompt(
        self,
        example: Example,
        rollout: Rollout,
        group: Sequence[Rollout],
        services: Services,
        *,
        reply: str | None = None,
    ) -> TeacherPrompt | None:
        """The teacher's prompt with all that belongs to it, or None.

        `reply` is the writer's answer to `request`.
        """
        privileged = None
        if self.ask is None:
            privileged = self.build(example, rollout, group, services, **self.settings)
        elif reply is not None:
            privileged = self.build(example, rollout, group, services, reply, **self.settings)
        if privileged is None:
            services.counts["empty"] += 1
            return None

        def messages(part: Privileged) -> list[Message]:
            return compose(
                example.prompt,
                part,
                tokenizer=services.tokenizer,
                max_tokens=services.max_context_tokens,
                counts=services.counts,
            )

        return TeacherPrompt(
            messages=messages(privileged),
            negatives=tuple(messages(negative) for negative in privileged.negatives),
            error_quote=privileged.error_quote,
        )

    def missing(self, example: Example) -> list[str]:
        """Entries of `needs` that the example has no text for."""
        return [need for need in self.needs if not has_text(example, need)]


def written(
    context: Context, requests: Sequence[list[Message]], services: Services
) -> list[str | None]:
    """The writer's answers; an answer that is empty is None, and counted as `unwritten`.

    Raises:
        ValueError: `services` has nobody who writes.
    """
    writer = services.the_writer()
    if writer is None:
        raise ValueError(needs_writer(context.name))
    replies = [
        reply if reply is not None and reply.strip() else None for reply in writer.write(requests)
    ]
    if missing := replies.count(None):
        services.counts["unwritten"] += missing
    return replies


def needs_writer(name: str) -> str:
    """What to tell somebody whose context has no model to write with."""
    return (
        f"context {name!r} needs a model to write with: a local one "
        "(Services(writer=LocalCritic(...))) or a server (Services(writer=ServerCritic(...)))"
    )
