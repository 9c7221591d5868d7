"""Traces to fine-tune on: a model's own answers, with or without a context, verified.

Under the context `none` and `keep="correct"` these are the data of rejection-sampled fine-tuning;
under `reference_solution` the solution-guided traces of 2603.24472 (Table 2), whose students lost
what the unguided ones kept.
"""

from __future__ import annotations

import json
from collections import Counter
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
) -> tuple[list[Example], Counter[str]]:
    """Answers of the model as examples whose `solution` is the answer and whose prompt is the bare
    question.

    Args:
        model, tokenizer: who answers.
        examples: problems with answers.
        context: what it sees besides the question; one that the data alone gives.
        k: answers to sample for each problem.
        keep: "correct" drops wrong and truncated answers, "all" keeps them, the truncated ones with
            `solution_truncated`. An answer without text is nothing to train on and never kept.
        per_problem: at most so many traces a problem, the first ones; None: all that are kept.

    Returns:
        Examples with ids `<problem>#<number>`; `metadata` has `problem`, `context`, `correct` and
        `num_tokens`. And how many answers were left out for which reason.

    Raises:
        ValueError: a context that needs rollouts, unknown settings, or examples that the context
            lacks a field of.
    """
    check_traces(context, keep)
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
    traces: list[Example] = []
    left_out: Counter[str] = Counter()
    for (example, _), group in zip(told, groups, strict=True):
        kept = 0
        for index, sample in enumerate(group):
            trace = _trace(example, index, sample, context)
            reason = _why_not(trace, keep) or ("over the limit" if kept == per_problem else "")
            if reason:
                left_out[reason] += 1
            else:
                traces.append(trace)
                kept += 1
    return traces, left_out


def check_traces(context: Context, keep: str) -> None:
    """What can be said without a model.

    Raises:
        ValueError: a context that needs rollouts, or an unknown `keep`.
    """
    if context.made_of not in FROM_DATA:
        raise ValueError(
            f"context {context.name!r} is made of {context.made_of}: traces need a context that "
            "the data alone gives, such as none, reference_solution or hint"
        )
    if keep not in KEEP:
        raise ValueError(f"keep={keep!r}: expected one of {', '.join(KEEP)}")


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


def _why_not(trace: Example, keep: str) -> str:
    """Why the answer is no trace, whatever the others are; nothing where it is one."""
    if not (trace.solution or "").strip():
        return "without text"
    if keep == "all":
        return ""
    if trace.solution_truncated:
        return "truncated"
    return "" if trace.metadata["correct"] else "wrong"


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
