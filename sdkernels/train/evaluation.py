"""Evaluate a model on problems with answers: accuracy, length, markers, entropy, with intervals.

Avg@k is the mean over the k answers of a problem, Pass@k the unbiased chance that one of k is
right, Maj@k whether the most frequent one is. Intervals are over problems.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from sdkernels.contexts import Example
from sdkernels.engine import LMHead, token_stats
from sdkernels.train.batch import Row, collate
from sdkernels.train.forward import hidden_states
from sdkernels.train.markers import marker_stats
from sdkernels.train.prompts import PromptEncoder, check_prompt_length
from sdkernels.train.records import write_json
from sdkernels.train.rollout import (
    RolloutBackend,
    Sample,
    Sampling,
    TransformersRollout,
    derived_seed,
)
from sdkernels.train.sides import padding_id
from sdkernels.train.statistics import (
    majority_correct,
    paired_difference,
    pass_at_k,
    share_interval,
)
from sdkernels.train.verify import Verdict, kind_of, verify, vote_key

ENTROPY_BATCH_ROWS = 8
PAIRED = ("accuracy", "completion_length", "marker_count")


def evaluate(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    *,
    k: int = 1,
    sampling: Sampling | None = None,
    seed: int = 0,
    rollout: RolloutBackend | None = None,
    batch_size: int | None = None,
    max_prompt_length: int | None = None,
    template_kwargs: dict[str, Any] | None = None,
    with_entropy: bool = True,
    should_stop: Callable[[], None] | None = None,
) -> dict[str, Any]:
    """Sample k answers per problem and score them.

    Args:
        model: causal language model; its mode and random state are left as they are.
        examples: problems, each with an answer.
        k: answers per problem.
        sampling: temperature and limits; default `Sampling()`. Greedy (temperature 0) goes with k =
            1.
        seed: of the sampling and of the bootstrap.
        rollout: another backend than transformers' generation with `model`.
        batch_size: sequences generated at once; None for all.
        with_entropy: also measure the mean entropy of the next-token distribution, at the sampling
            temperature (1 for greedy answers).

    Returns:
        What `score_answers` says, and `pass_at`, `maj_at_k`, `distinct_answers` (mean number of
        different answers to a problem), `entropy` (nats; None without), `k`.

    Raises:
        ValueError: no examples, one without a usable answer, or k > 1 with greedy sampling.
    """
    sampling = sampling or Sampling()
    _check(examples, k, sampling)
    encoder = PromptEncoder(tokenizer, template_kwargs)
    prompts = [encoder.ids(example.prompt) for example in examples]
    if max_prompt_length is not None:
        for example, ids in zip(examples, prompts, strict=True):
            check_prompt_length(example, len(ids), max_prompt_length)
    backend = rollout or TransformersRollout(
        lambda: model, tokenizer, batch_size=batch_size, should_stop=should_stop
    )
    groups = backend.generate(prompts, k, sampling, seed=derived_seed(seed, "evaluate"))
    verdicts = judge(examples, groups)
    result = score_answers(examples, groups, verdicts, seed=seed)
    result |= {"k": k, **group_scores(examples, verdicts, k), "entropy": None}
    if with_entropy:
        result["entropy"] = mean_entropy(
            model, tokenizer, prompts, groups, temperature=sampling.temperature or 1.0
        )
    return result


def judge(examples: Sequence[Example], groups: list[list[Sample]]) -> list[list[Verdict]]:
    """The verifier's word on every answer."""
    return [
        [verify(sample.text, example) for sample in group]
        for example, group in zip(examples, groups, strict=True)
    ]


def compare(before: dict[str, Any], after: dict[str, Any], *, seed: int = 0) -> dict[str, Any]:
    """Paired difference of two results of `evaluate` on the same problems.

    Of `accuracy`, `completion_length` and `marker_count` (per response); what one of the two does
    not hold, because an older version wrote it, is left out.

    Raises:
        ValueError: the problems are not the same.
    """
    pairs = [result["per_example"] for result in (before, after)]
    ids = [[entry["id"] for entry in entries] for entries in pairs]
    if ids[0] != ids[1]:
        raise ValueError("the two evaluations are of different problems, so they cannot be paired")
    return {
        name: paired_difference(*([entry[name] for entry in side] for side in pairs), seed=seed)
        for name in PAIRED
        if all(name in entry for side in pairs for entry in side)
    }


def read_result(file: Path) -> dict[str, Any]:
    """A result that `sdkernels eval` wrote.

    Raises:
        ValueError: it is none.
    """
    try:
        result = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{file}: not a result of an evaluation ({error})") from error
    if not isinstance(result, dict) or "per_example" not in result:
        raise ValueError(f"{file}: not a result of an evaluation (it has no `per_example`)")
    return result


def save_result(file: Path, result: dict[str, Any]) -> None:
    """Write a result as JSON."""
    write_json(file, result)


def headline(result: dict[str, Any]) -> dict[str, Any]:
    """The part of a result that goes into `summary.json`."""
    return {name: result[name] for name in result if name != "per_example"}


def _check(examples: Sequence[Example], k: int, sampling: Sampling) -> None:
    if not examples:
        raise ValueError("there is no example to evaluate on")
    if k < 1:
        raise ValueError(f"k={k}: expected at least 1 answer per problem")
    if k > 1 and sampling.temperature == 0:
        raise ValueError(
            f"k={k} with temperature 0: greedy answers are all the same; use k=1 or sample"
        )
    for example in examples:
        kind_of(example)


def score_answers(
    examples: Sequence[Example],
    groups: list[list[Sample]],
    verdicts: list[list[Verdict]],
    *,
    seed: int = 0,
) -> dict[str, Any]:
    """What the answers to each problem, at least one, come to; a mean over the problems' means.

    Returns:
        `n` problems, `accuracy` with `accuracy_ci`, `completion_length` (tokens),
        `truncated_share`, `markers` (whole words) and `markers_published` (substrings), each with
        `total`, `by_marker`, `per_response`, `per_1k_tokens`, `per_word`; `markers_per_1k` (whole
        words); `per_example`.
    """
    correct = [[verdict.correct for verdict in group] for group in verdicts]
    accuracy = [sum(group) / len(group) for group in correct]
    samples = [sample for group in groups for sample in group]
    texts, lengths = [s.text for s in samples], [len(s.token_ids) for s in samples]
    markers = marker_stats(texts, lengths)
    return {
        "n": len(examples),
        "accuracy": sum(accuracy) / len(accuracy),
        "accuracy_ci": list(share_interval(accuracy, seed=seed)),
        "completion_length": sum(lengths) / len(lengths),
        "truncated_share": sum(sample.truncated for sample in samples) / len(samples),
        "markers_per_1k": markers.per_1k_tokens,
        "markers": asdict(markers),
        "markers_published": asdict(marker_stats(texts, lengths, mode="substring")),
        "per_example": [
            {
                "id": example.id,
                "accuracy": share,
                "completion_length": sum(len(s.token_ids) for s in group) / len(group),
                "marker_count": marker_stats(
                    [s.text for s in group], [0] * len(group)
                ).per_response,
                "extracted": [verdict.extracted for verdict in judged],
                "correct": right,
            }
            for example, share, group, judged, right in zip(
                examples, accuracy, groups, verdicts, correct, strict=True
            )
        ],
    }


def at_k(result: dict[str, Any]) -> dict[str, float]:
    """Avg@k, Pass@k and Maj@k of a result of `evaluate`, under the names that papers use; Pass@
    also for the smaller numbers that the result holds.
    """
    k = result.get("k")
    found = {f"Avg@{k}": result.get("accuracy")}
    found |= {f"Pass@{size}": share for size, share in (result.get("pass_at") or {}).items()}
    found[f"Maj@{k}"] = result.get("maj_at_k")
    return {name: share for name, share in found.items() if k and share is not None}


def group_scores(
    examples: Sequence[Example], verdicts: list[list[Verdict]], k: int
) -> dict[str, Any]:
    """What needs k answers to each problem: `pass_at`, `maj_at_k`, `distinct_answers`."""
    correct = [[verdict.correct for verdict in group] for group in verdicts]
    votes = [
        [vote_key(verdict.extracted, example) for verdict in group]
        for example, group in zip(examples, verdicts, strict=True)
    ]
    majority = [majority_correct(keys, right) for keys, right in zip(votes, correct, strict=True)]
    ks = [size for size in (1, 2, 4, 8, 16, 32, 64, 128) if size < k] + [k]
    return {
        "pass_at": {
            str(size): sum(pass_at_k(k, sum(group), size) for group in correct) / len(correct)
            for size in ks
        },
        "maj_at_k": sum(majority) / len(majority),
        "distinct_answers": sum(len({*keys} - {None}) for keys in votes) / len(votes),
    }


@torch.no_grad()
def mean_entropy(
    model: Any,
    tokenizer: Any,
    prompts: list[list[int]],
    groups: list[list[Sample]],
    *,
    temperature: float,
) -> float | None:
    """Mean entropy over all sampled tokens, nats, by the engine: no logits are kept."""
    from sdkernels.contexts import Rollout

    rows = []
    for number, (prompt, group) in enumerate(zip(prompts, groups, strict=True)):
        for sample in group:
            rollout = Rollout(str(number), 0, sample.text, sample.token_ids)
            example = Example(id=str(number), prompt=[])
            kept = [True] * len(sample.token_ids)
            rows.append(Row(example, rollout, prompt, weights=[1.0] * len(kept), counts=kept))
    # Alike lengths together: less padding.
    rows = sorted(
        (row for row in rows if row.counts),
        key=lambda row: len(row.prompt_ids) + len(row.response_ids),
    )
    was_training = model.training
    model.eval()
    total, count = 0.0, 0
    try:
        device = next(model.parameters()).device
        for start in range(0, len(rows), ENTROPY_BATCH_ROWS):
            batch = collate(
                rows[start : start + ENTROPY_BATCH_ROWS],
                padding_id(tokenizer),
                device,
                with_teacher=False,
            )
            hidden_ND = hidden_states(model, batch.student)
            stats = token_stats(hidden_ND, LMHead.from_model(model), temperature=temperature)
            total += float(stats.entropy.double().sum())
            count += stats.entropy.numel()
    finally:
        model.train(was_training)
    return total / count if count else None
