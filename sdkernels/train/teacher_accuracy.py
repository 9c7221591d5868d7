"""How good the teacher is by itself: it answers the problems under each context (2603.24472,
Table 1).

A context that makes the teacher sure and short may still teach the student to stop thinking, so
score, length and markers belong side by side.

A context made of the model's answers chooses its problems by how they came out: a failed attempt
stands under problems that the model got wrong. The same answers as baseline would call that a
change (with k = 1 a fair coin gains 50 points under "what you got wrong"), so such a context is
compared with answers that had no part in the choice.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sdkernels import contexts as registry
from sdkernels.contexts import Context, Example, Rollout, Services, build_batch, validate
from sdkernels.train.evaluation import group_scores, judge, mean_entropy, score_answers
from sdkernels.train.prompts import PromptEncoder
from sdkernels.train.records import write_json
from sdkernels.train.rollout import (
    RolloutBackend,
    Sample,
    Sampling,
    TransformersRollout,
    derived_seed,
)
from sdkernels.train.statistics import paired_difference
from sdkernels.train.verify import Verdict

TEACHER_FILE = "teacher_accuracy.json"
ROOM_FOR_TEMPLATE_TOKENS = 128


def teacher_accuracy(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    contexts: Sequence[Context],
    *,
    k: int = 4,
    sampling: Sampling | None = None,
    seed: int = 0,
    critic: Any = None,
    window: int | None = None,
    rollout: RolloutBackend | None = None,
    batch_size: int | None = None,
    template_kwargs: dict[str, Any] | None = None,
    announce: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Let the model answer every problem without a context and under each of `contexts`.

    First it answers k times with the question alone. Each of these answers is then an attempt with
    its group, from which a context makes the teacher's prompt just as in training; the model
    answers once under each prompt. A problem whose context has nothing to say for any of its
    attempts is left out of that context's score, and counted.

    Where one of the contexts reads these answers (`Context.reads_responses`), the model answers
    every problem k times more with the question alone, from other seeds: as many answers again as
    for "none". They are the baseline of those contexts and nothing else; all others are compared
    with the first answers.

    Args:
        model, tokenizer: the teacher; in self-distillation the untrained student.
        examples: problems, each with an answer and what the contexts need.
        contexts: what to compare; "none" is always there and need not be named.
        sampling: default `Sampling()`.
        critic: for contexts that need one.
        window: longest sequence of the model; contexts are cut to what it leaves.
        announce: called with a line before each context.

    Returns:
        `n`, `k`, `contexts` and `second`: what `score_answers` says of the second answers to the
        question alone, None where no context needs them. `contexts` has one entry each, "none"
        first, with what `score_answers` says, `pass_at`, `maj_at_k` and `distinct_answers` (where
        each problem has all k answers), `entropy` (nats), `answers`, `without_context` (attempts
        that the context had nothing for), and `change`: paired difference in accuracy to the
        question alone, and as `baseline` to which answers, "first" or "second"; None for "none".

    Raises:
        ValueError: no examples, two with one id, a context that needs a critic without one, or a
            window that is too short. Examples without what a context needs are logged by name and
            left out of its score.
    """
    sampling = sampling or Sampling()
    if k < 1:
        raise ValueError(f"k={k}: expected at least 1 answer per problem")
    if len({example.id for example in examples}) != len(examples):
        raise ValueError("examples: two have the same id, so their attempts cannot be told apart")
    encoder = PromptEncoder(tokenizer, template_kwargs)
    prompts = [encoder.ids(example.prompt) for example in examples]
    services = Services(
        tokenizer=tokenizer,
        critic=critic,
        max_context_tokens=_context_tokens(window, prompts, sampling),
        pool=examples,
    )
    named = [context for context in contexts if context.name != "none"]
    for context in named:
        validate(examples, context, services=services, strict=False)
    backend = rollout or TransformersRollout(lambda: model, tokenizer, batch_size=batch_size)
    announce = announce or (lambda _line: None)
    announce("none: the question alone")
    groups = backend.generate(prompts, k, sampling, seed=derived_seed(seed, "evaluate"))
    attempts = _attempts(examples, groups, judge(examples, groups))
    repeated = [ids for ids in prompts for _ in range(k)]

    def score(name: str, used: list[list[int]], answers: list[Sample | None]) -> dict[str, Any]:
        entry = _score(examples, answers, k=k, seed=seed)
        found = [[answer] for answer in answers if answer is not None]
        temperature = sampling.temperature or 1.0
        entropy = mean_entropy(model, tokenizer, used, found, temperature=temperature)
        return {"context": name, "settings": {}, **entry, "entropy": entropy}

    scored = [score("none", repeated, [sample for group in groups for sample in group])]
    baselines = {"first": scored[0]}
    if any(context.reads_responses for context in named):
        announce("none, once more: the baseline of contexts made of the first answers")
        again = backend.generate(prompts, k, sampling, seed=derived_seed(seed, "baseline"))
        baselines["second"] = score_answers(examples, again, judge(examples, again), seed=seed)
    for context in named:
        announce(f"{context.name}: {context.summary}")
        rows = [example for example in examples for _ in range(k)]
        built = build_batch(context, rows, attempts, services)
        told = [encoder.ids(messages) for messages in built if messages is not None]
        fresh = iter(
            backend.generate(told, 1, sampling, seed=derived_seed(seed, "teacher", context.name))
            if told
            else []
        )
        answers = [None if messages is None else next(fresh)[0] for messages in built]
        entry = score(context.name, told, answers) | {"settings": _changed(context)}
        baseline = "second" if context.reads_responses else "first"
        change = _change(baselines[baseline], entry, seed=seed)
        entry["change"] = change and change | {"baseline": baseline}
        scored.append(entry)
    second = baselines.get("second")
    return {"n": len(examples), "k": k, "second": second, "contexts": scored}


def save(folder_or_file: Path, result: dict[str, Any]) -> Path:
    """Write a result; into a folder as `teacher_accuracy.json`, where a report looks for it."""
    file = folder_or_file / TEACHER_FILE if folder_or_file.is_dir() else folder_or_file
    write_json(file, result)
    return file


def _changed(context: Context) -> dict[str, Any]:
    """The settings that are not the context's own."""
    usual = registry.get(context.name).settings
    return {name: value for name, value in context.settings.items() if value != usual[name]}


def _context_tokens(
    window: int | None, prompts: Sequence[list[int]], sampling: Sampling
) -> int | None:
    if window is None:
        return None
    longest = max((len(ids) for ids in prompts), default=0)
    room = window - longest - sampling.max_new_tokens - ROOM_FOR_TEMPLATE_TOKENS
    if room < 1:
        raise ValueError(
            f"the model's window of {window} tokens has no room for a context beside a prompt of "
            f"{longest} and max_new_tokens={sampling.max_new_tokens}; lower max_new_tokens"
        )
    return room


def _attempts(
    examples: Sequence[Example], groups: list[list[Sample]], verdicts: list[list[Verdict]]
) -> list[Rollout]:
    return [
        Rollout(
            example_id=example.id,
            index=index,
            text=sample.text,
            token_ids=sample.token_ids,
            truncated=sample.truncated,
            reward=verdict.reward,
            success=verdict.correct,
            extracted=verdict.extracted,
            feedback=verdict.feedback,
        )
        for example, group, judged in zip(examples, groups, verdicts, strict=True)
        for index, (sample, verdict) in enumerate(zip(group, judged, strict=True))
    ]


def _score(
    examples: Sequence[Example], answers: Sequence[Sample | None], *, k: int, seed: int
) -> dict[str, Any]:
    """Scores over the problems that have an answer; `answers` are k in a row for each problem."""
    grouped = [
        (example, [answer for answer in answers[k * at : k * at + k] if answer is not None])
        for at, example in enumerate(examples)
    ]
    known = [(example, group) for example, group in grouped if group]
    given = sum(len(group) for _, group in known)
    counts = {"answers": given, "without_context": len(answers) - given, "change": None}
    if not known:
        return {"n": 0, "accuracy": None, "per_example": [], **counts}
    asked, groups = [example for example, _ in known], [group for _, group in known]
    verdicts = judge(asked, groups)
    scores = score_answers(asked, groups, verdicts, seed=seed)
    if all(len(group) == k for group in groups):
        scores |= group_scores(asked, verdicts, k)
    return {**scores, **counts}


def _change(base: dict[str, Any], entry: dict[str, Any], *, seed: int) -> dict[str, Any] | None:
    """Paired difference in accuracy to `base`, over the problems of `entry`; None without any.

    `base` has all problems, and no part in which of them `entry` has.
    """
    before = {row["id"]: row["accuracy"] for row in base["per_example"]}
    after = {row["id"]: row["accuracy"] for row in entry["per_example"]}
    if not after:
        return None
    return paired_difference([before[name] for name in after], list(after.values()), seed=seed)
