"""What the rollouts of a step tell: verdicts, lengths, markers, and how alike they are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from sdkernels.contexts import Rollout
from sdkernels.train.batch import Row
from sdkernels.train.markers import marker_stats
from sdkernels.train.step_metrics import StepMetrics
from sdkernels.train.verify import vote_key


def add_rollout_metrics(
    metrics: StepMetrics, rows: Sequence[Row], *, group_size: int, with_signal: bool
) -> None:
    """Add the rollouts of a step to its metrics.

    Args:
        rows: `group_size` rollouts in a row for each prompt.
        with_signal: also count the rows whose context had something to say.
    """
    rollouts = [row.rollout for row in rows]
    judged = [rollout for rollout in rollouts if rollout.reward is not None]
    if judged:
        metrics.add("reward", sum(rollout.reward or 0.0 for rollout in judged), len(judged))
        metrics.add("accuracy", sum(bool(rollout.success) for rollout in judged), len(judged))
    if with_signal:
        metrics.add(
            "signal_share", sum(row.teacher_prompt_ids is not None for row in rows), len(rows)
        )
    metrics.add("single_token_share", sum(len(r.token_ids) <= 1 for r in rollouts), len(rollouts))
    metrics.add("truncated_share", sum(rollout.truncated for rollout in rollouts), len(rows))
    for suffix, wanted in (("", None), ("_correct", True), ("_wrong", False)):
        chosen = [r for r in rollouts if wanted is None or r.success is wanted]
        _add_length(metrics, chosen, suffix)
    _add_markers(metrics, rollouts)
    for start in range(0, len(rows), group_size):
        _add_likeness(metrics, rows[start : start + group_size])
        _add_group(metrics, rows[start : start + group_size])


def _add_length(metrics: StepMetrics, rollouts: Sequence[Rollout], suffix: str) -> None:
    lengths = [len(rollout.token_ids) for rollout in rollouts]
    markers = marker_stats([rollout.text for rollout in rollouts], lengths)
    metrics.add(f"completion_length{suffix}", sum(lengths), len(rollouts))
    metrics.add(f"markers_per_1k{suffix}", 1000 * markers.total, sum(lengths))


def _add_markers(metrics: StepMetrics, rollouts: Sequence[Rollout]) -> None:
    """Whole-word counts, and under `published` the substring counts of 2603.24472."""
    texts = [rollout.text for rollout in rollouts]
    num_tokens = sum(len(rollout.token_ids) for rollout in rollouts)
    num_words = sum(len(text.split()) for text in texts)
    words = marker_stats(texts, [0] * len(texts)).total
    published = marker_stats(texts, [0] * len(texts), mode="substring").total
    metrics.add("marker_count", words)
    for name, count in (("markers", words), ("markers_published", published)):
        metrics.add(f"{name}_per_response", count, len(rollouts))
        metrics.add(f"{name}_per_word", count, num_words)
    metrics.add("markers_published_per_1k", 1000 * published, num_tokens)


def _add_group(metrics: StepMetrics, group: Sequence[Row]) -> None:
    """Groups of which no rollout was verified correct, and groups of which all were: in neither
    does the verifier prefer any rollout. And groups with a lone success, which has no correct
    sibling for a context.
    """
    verdicts = [row.rollout.success for row in group]
    if any(verdict is None for verdict in verdicts):
        return
    metrics.add("failed_group_share", float(not any(verdicts)))
    metrics.add("solved_group_share", float(all(verdicts)))
    if len(group) > 1:
        metrics.add("lone_success_share", float(sum(map(bool, verdicts)) == 1))


def _add_likeness(metrics: StepMetrics, group: Sequence[Row]) -> None:
    """Rollouts that another one of their group repeats token by token, and different answers."""
    if len(group) < 2:
        return
    outputs = Counter(tuple(row.rollout.token_ids) for row in group)
    repeated = sum(count for count in outputs.values() if count > 1)
    metrics.add("same_output_share", repeated, len(group))
    if any(row.rollout.reward is None for row in group):
        return
    answers = {vote_key(row.rollout.extracted, row.example) for row in group}
    metrics.add("distinct_answers", len(answers - {None}))
