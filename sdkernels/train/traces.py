"""Traces to fine-tune on: a model's own answers, with or without a context, verified.

Under the context `none` and `keep="correct"` these are the data of rejection-sampled fine-tuning;
under `reference_solution` the solution-guided traces of 2603.24472 (Table 2), whose students lost
what the unguided ones kept.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdkernels.contexts import Context, Example, Rollout, Services, build_batch, validate
from sdkernels.train.prompts import PromptEncoder
from sdkernels.train.rollout import (
    RolloutBackend,
    Sample,
    Sampling,
    TransformersRollout,
    derived_seed,
)
from sdkernels.train.verify import verify

KEEP = ("correct", "all")
FROM_DATA = ("nothing", "data")
# Fields of an example that `write_examples` writes besides id and prompt, where there is something.
WRITTEN = (
    *("answer", "solution", "solution_truncated", "stronger_solution"),
    *("hint", "feedback", "task"),
)


def sample_traces(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    context: Context,
    *,
    k: int = 4,
    keep: str = "correct",
    per_problem: int | None = None,
    sampling: Sampling | None = None,
    seed: int = 0,
    rollout: RolloutBackend | None = None,
    batch_size: int | None = None,
    template_kwargs: dict[str, Any] | None = None,
) -> list[Example]:
    """Answers of the model as examples whose `solution` is the answer and whose prompt is the bare
    question.

    Args:
        model, tokenizer: who answers.
        examples: problems with answers.
        context: what it sees besides the question; one that the data alone gives.
        k: answers to sample for each problem.
        keep: "correct" drops wrong and truncated answers, "all" keeps them, the truncated ones with
            `solution_truncated`.
        per_problem: at most so many traces a problem, the first ones; None: all that are kept.

    Returns:
        Examples with ids `<problem>#<number>`; `metadata` has `problem`, `context`, `correct` and
        `num_tokens`.

    Raises:
        ValueError: a context that needs rollouts, unknown settings, or examples that the context
            lacks a field of.
    """
    if context.made_of not in FROM_DATA:
        raise ValueError(
            f"context {context.name!r} is made of {context.made_of}: traces need a context that "
            "the data alone gives, such as none, reference_solution or hint"
        )
    if keep not in KEEP:
        raise ValueError(f"keep={keep!r}: expected one of {', '.join(KEEP)}")
    for name, value in (("k", k), ("per_problem", per_problem)):
        if value is not None and value < 1:
            raise ValueError(f"{name}={value}: expected at least 1")
    services = Services(tokenizer=tokenizer)
    validate(examples, context, services=services)
    encoder = PromptEncoder(tokenizer, template_kwargs)
    nothing = [Rollout(example.id, 0, "", []) for example in examples]
    built = build_batch(context, examples, nothing, services)
    told = [
        (example, encoder.ids(messages))
        for example, messages in zip(examples, built, strict=True)
        if messages is not None
    ]
    backend = rollout or TransformersRollout(lambda: model, tokenizer, batch_size=batch_size)
    groups = backend.generate(
        [ids for _, ids in told],
        k,
        sampling or Sampling(),
        seed=derived_seed(seed, "traces", context.name),
    )
    traces = []
    for (example, _), group in zip(told, groups, strict=True):
        made = [_trace(example, i, sample, context) for i, sample in enumerate(group)]
        good = [t for t in made if keep == "all" or _is_good(t)]
        traces += good[:per_problem]
    return traces


def _trace(example: Example, index: int, sample: Sample, context: Context) -> Example:
    return Example(
        id=f"{example.id}#{index}",
        prompt=example.prompt,
        answer=example.answer,
        solution=sample.text,
        hint=example.hint,
        task=example.task,
        metadata={
            "problem": example.id,
            "context": context.name,
            "correct": verify(sample.text, example).correct,
            "num_tokens": len(sample.token_ids),
        },
        solution_truncated=sample.truncated,
    )


def _is_good(trace: Example) -> bool:
    return bool(trace.metadata["correct"] and not trace.solution_truncated and trace.solution)


def write_examples(file: Path, examples: Sequence[Example]) -> None:
    """Write examples as JSON lines that `--dataset` reads; what they don't have is left out."""
    lines = []
    for example in examples:
        record: dict[str, Any] = {"id": example.id, "prompt": example.prompt}
        for name in WRITTEN:
            if getattr(example, name):
                record[name] = getattr(example, name)
        about = {key: value for key, value in example.metadata.items() if key != "row"}
        lines.append(json.dumps(record | ({"about": about} if about else {}), ensure_ascii=False))
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
