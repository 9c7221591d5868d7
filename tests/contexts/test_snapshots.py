"""The exact prompt of every context under three chat templates, as golden snapshots.

A snapshot changes only on purpose: `SDKERNELS_UPDATE_SNAPSHOTS=1 pytest tests/contexts` rewrites
the files, and the difference is then for the reviewer to read.
"""

import difflib
import os
from pathlib import Path
from typing import Any

import pytest
from helpers.chat_templates import TEMPLATES, render

from sdkernels import contexts
from sdkernels.contexts import TeacherPrompt
from sdkernels.contexts.sample import EXAMPLE, ROLLOUTS, sample_services

SNAPSHOTS = Path(__file__).parent / "snapshots"

VARIANTS: dict[str, tuple[str, dict[str, Any]]] = {
    **{name: (name, {}) for name in contexts.names()},
    "instruction-detailed": ("instruction", {"style": "detailed"}),
    "sibling_solution-shortest": ("sibling_solution", {"choose": "shortest"}),
    "sibling_solution-stripped": ("sibling_solution", {"thinking": "strip"}),
    "contrastive-answer": ("contrastive", {"show": "answer", "negatives": 1}),
}


def prompt_of(variant: str) -> TeacherPrompt:
    name, settings = VARIANTS[variant]
    context = contexts.get(name, **settings)
    examples = [EXAMPLE] * len(ROLLOUTS)
    prompt = contexts.build_prompts(context, examples, ROLLOUTS, sample_services())[0]
    assert prompt is not None
    return prompt


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("variant", VARIANTS)
def test_the_prompt_is_the_recorded_one(variant: str, template: str) -> None:
    prompt = prompt_of(variant)
    text = render(TEMPLATES[template], prompt.messages)
    for number, negative in enumerate(prompt.negatives, start=1):
        text += f"\n=== the other side, {number}\n{render(TEMPLATES[template], negative)}"
    if prompt.error_quote is not None:
        text += f"\n=== quote of the error\n{prompt.error_quote}"
    path = SNAPSHOTS / template / f"{variant}.txt"
    if os.environ.get("SDKERNELS_UPDATE_SNAPSHOTS") == "1":
        path.write_text(text, encoding="utf-8")
    recorded = path.read_text(encoding="utf-8")
    difference = difflib.unified_diff(
        recorded.splitlines(), text.splitlines(), "recorded", "built", lineterm=""
    )
    assert text == recorded, "\n".join(difference)


@pytest.mark.parametrize("template", TEMPLATES)
def test_there_is_no_snapshot_without_a_builder(template: str) -> None:
    assert {path.stem for path in (SNAPSHOTS / template).glob("*.txt")} == set(VARIANTS)


@pytest.mark.parametrize("thinking", [True, False])
def test_the_boundary_of_qwen3_is_that_of_the_thinking_switch(thinking: bool) -> None:
    for variant in VARIANTS:
        text = render(TEMPLATES["qwen3"], prompt_of(variant).messages, enable_thinking=thinking)
        end = "<|im_start|>assistant\n"
        assert text.endswith(end if thinking else end + "<think>\n\n</think>\n\n"), variant
