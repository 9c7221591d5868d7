"""A small example for looking at teacher prompts without a model or a data set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sdkernels.contexts.registry import get
from sdkernels.contexts.types import Example, Rollout, Services

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
]

CRITIQUE = "Step 1: 3 * 12 = 36 pens bought.\nStep 2: 36 - 7 = 29 pens kept.\nAnswer: 29"


class CannedCritic:
    """A critic that knows one critique."""

    def critique(self, pairs: Sequence[tuple[Example, Rollout]]) -> list[str | None]:
        """The canned critique for every pair."""
        return [CRITIQUE for _ in pairs]


def render_sample(name: str, **settings: Any) -> str:
    """The prompt that context `name` makes of the sample, as readable text; needs no model."""
    context = get(name, **settings)
    messages = context(EXAMPLE, ROLLOUTS[0], ROLLOUTS, Services(critic=CannedCritic()))
    if messages is None:
        return f"(no signal for the sample: {context.on_empty})"
    return "\n\n".join(f"<{message['role']}>\n{message['content']}" for message in messages)
