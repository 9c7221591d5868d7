"""A small example for looking at teacher prompts without a model or a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdkernels.contexts.model_contexts import EXPLAIN
from sdkernels.contexts.registry import get
from sdkernels.contexts.types import Example, Message, Rollout, Services, written

EXAMPLE = Example(
    id="sample",
    prompt=[
        {
            "role": "user",
            "content": "A box holds 12 pens. Ada buys 3 boxes and gives 7 pens away. How many pens "
            "does she keep?\n\nWork step by step and end with a line `Answer: <value>`.",
        }
    ],
    answer="29",
    solution="<think>\n3 boxes of 12 pens, so 36. Wait, she gives 7 away: 36 - 7 = 29. Let me "
    "check: 29 + 7 = 36, and 36 / 12 = 3. Fine.\n</think>\n"
    "Step 1: 3 * 12 = 36 pens bought.\nStep 2: 36 - 7 = 29 pens kept.\nAnswer: 29",
    stronger_solution="<think>\nFirst the total, then what is given away.\n</think>\n"
    "Three boxes of twelve pens are 36 pens. Seven are given away, so 36 - 7 = 29 are left.\n"
    "Answer: 29",
    hint="First work out how many pens there are in all the boxes together.",
    task="number",
)

ROLLOUTS = [
    Rollout(
        example_id="sample",
        index=0,
        text="Step 1: 3 * 12 = 36 pens bought.\nStep 2: 36 + 7 = 43 pens kept.\nAnswer: 43",
        token_ids=list(range(34)),
        reward=0.0,
        success=False,
        extracted="43",
        feedback="The final answer was read as `43`, and it is not correct.",
    ),
    Rollout(
        example_id="sample",
        index=1,
        text="<think>\nMaybe I should add up the boxes first: 12 + 12 + 12 = 36.\n</think>\n"
        "There are 36 pens. Without the 7 pens that she gives away, 29 are left.\nAnswer: 29",
        token_ids=list(range(57)),
        reward=1.0,
        success=True,
        extracted="29",
        feedback="The final answer was checked, and it is correct.",
    ),
    Rollout(
        example_id="sample",
        index=2,
        text="3 * 12 - 7 = 29\nAnswer: 29",
        token_ids=list(range(14)),
        reward=1.0,
        success=True,
        extracted="29",
        feedback="The final answer was checked, and it is correct.",
    ),
    Rollout(
        example_id="sample",
        index=3,
        text="12 + 3 - 7 = 8 pens are left.\nAnswer: 8",
        token_ids=list(range(19)),
        reward=0.0,
        success=False,
        extracted="8",
        feedback="The final answer was read as `8`, and it is not correct.",
    ),
]

OTHER = Example(
    id="other",
    prompt=[
        {
            "role": "user",
            "content": "A train of 8 wagons has 40 seats in each. 15 seats are taken. How many are "
            "free?\n\nWork step by step and end with a line `Answer: <value>`.",
        }
    ],
    answer="305",
    solution="Step 1: 8 * 40 = 320 seats.\nStep 2: 320 - 15 = 305 are free.\nAnswer: 305",
    task="number",
)

CRITIQUE = "Step 1: 3 * 12 = 36 pens bought.\nStep 2: 36 - 7 = 29 pens kept.\nAnswer: 29"

REFLECTION = (
    "<quote>Step 2: 36 + 7 = 43 pens kept.</quote>\n"
    "<why>Pens that she gives away become fewer, so they have to be subtracted.</why>"
)
ANALYSIS = (
    "The solution first counts all pens, because the boxes hold equally many, and takes away those "
    "that are given away only then. Adding them instead would be the likely mistake."
)
REGENERATION = (
    "She has 3 boxes of 12 pens, which is 36. Giving away 7 leaves 36 - 7 = 29.\nAnswer: 29"
)


class CannedCritic:
    """A critic that knows one critique, and a writer that knows three answers."""

    def critique(self, pairs: Sequence[tuple[Example, Rollout]]) -> list[str | None]:
        """The canned critique for every pair."""
        return [CRITIQUE for _ in pairs]

    def write(self, prompts: Sequence[list[Message]]) -> list[str | None]:
        """The canned answer to what each prompt asks for."""
        return [self._answer(messages[-1]["content"]) for messages in prompts]

    @staticmethod
    def _answer(question: str) -> str:
        if "<why>" in question:
            return REFLECTION
        return ANALYSIS if question.endswith(EXPLAIN) else REGENERATION


def sample_services() -> Services:
    """Services that need no model."""
    return Services(critic=CannedCritic(), pool=[EXAMPLE, OTHER])


def render_sample(name: str, **settings: Any) -> str:
    """What context `name` makes of the sample, as readable text; needs no model.

    Where a text is written first, the prompt for the writer stands before the teacher's; the other
    sides of a contrast and the quote of the error stand after it.
    """
    context = get(name, **settings)
    services = sample_services()
    row = (EXAMPLE, ROLLOUTS[0], ROLLOUTS, services)
    parts = []
    reply = None
    request = context.request(*row)
    if context.ask is not None and request is not None:
        reply = written(context, [request], services)[0]
        parts.append(f"(asked of the writer)\n\n{_shown(request)}")
        parts.append(f"(its answer)\n\n{reply}")
    prompt = context.prompt(*row, reply=reply)
    if prompt is None:
        parts.append(f"(no signal for the sample: {context.on_empty})")
        return "\n\n".join(parts)
    if parts:
        parts.append("(the teacher's prompt)")
    parts.append(_shown(prompt.messages))
    for number, negative in enumerate(prompt.negatives, start=1):
        parts.append(f"(the other side, {number} of {len(prompt.negatives)})\n\n{_shown(negative)}")
    if prompt.error_quote is not None:
        parts.append(f"(first error of the response)\n\n{prompt.error_quote}")
    return "\n\n".join(parts)


def _shown(messages: Sequence[Message]) -> str:
    return "\n\n".join(f"<{message['role']}>\n{message['content']}" for message in messages)
