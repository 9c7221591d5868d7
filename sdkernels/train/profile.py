"""Where the time of a training step goes, from the lines of `metrics.jsonl`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sdkernels.train.step_metrics import SECTIONS


@dataclass(frozen=True)
class Breakdown:
    """Means over some steps.

    Attributes:
        steps: numbers of the first and last step that count.
        seconds: by section, those that ran, and `other` (data, logging, checkpoints, evaluation).
        total_seconds: of a step.
        num_tokens: tokens in the loss of a step, over all ranks.
        peak_memory_bytes: the most of any step.
    """

    steps: tuple[int, int]
    seconds: dict[str, float]
    total_seconds: float
    num_tokens: float
    peak_memory_bytes: int

    @property
    def tokens_per_second(self) -> float:
        """Tokens in the loss per second, rollouts included."""
        return self.num_tokens / self.total_seconds

    @property
    def tokens_per_second_without_rollout(self) -> float:
        """The same, rollouts excluded."""
        return self.num_tokens / (self.total_seconds - self.seconds.get("rollout", 0.0))


def breakdown(lines: Sequence[dict[str, Any]]) -> Breakdown:
    """Mean over the steps; the first one, which pays for setting up, is left out if there are more.

    Raises:
        ValueError: no line tells its speed.
    """
    timed = [line for line in lines if line.get("tokens_per_second")]
    if not timed:
        raise ValueError("no step trained on any token, so there is nothing to profile")
    counted = timed[1:] or timed
    elapsed = sum(line["num_tokens"] / line["tokens_per_second"] for line in counted)
    number = len(counted)
    seconds: dict[str, float] = {}
    for name in SECTIONS:
        values = [line["seconds"].get(name) for line in counted]
        if any(value is not None for value in values):
            seconds[name] = sum(value or 0.0 for value in values) / number
    seconds["other"] = max(0.0, elapsed / number - sum(seconds.values()))
    return Breakdown(
        steps=(counted[0]["step"], counted[-1]["step"]),
        seconds=seconds,
        total_seconds=elapsed / number,
        num_tokens=sum(line["num_tokens"] for line in counted) / number,
        peak_memory_bytes=max(line["peak_memory_bytes"] for line in counted),
    )


def table(profile: Breakdown) -> str:
    """The breakdown for a terminal."""
    first, last = profile.steps
    if first == last == 1:
        title = "Time of step 1, first calls included"
    elif first == last:
        title = f"Time of step {first}"
    else:
        title = f"Time of a step, mean of steps {first} to {last}"
    rows = [*profile.seconds.items(), ("total", profile.total_seconds)]
    lines = [title, f"  {'':<16}{'seconds':>10}{'share':>9}"]
    lines += [
        f"  {name.replace('_', ' '):<16}{value:>10.3f}{value / profile.total_seconds:>9.1%}"
        for name, value in rows
    ]
    lines += [
        f"{profile.num_tokens:.0f} tokens in the loss: {profile.tokens_per_second:.1f} a second, "
        f"{profile.tokens_per_second_without_rollout:.1f} without rollouts",
        f"peak memory {profile.peak_memory_bytes / 2**30:.2f} GiB",
    ]
    return "\n".join(lines)
