"""What a model does with a set of problems: accuracy, waits, steps, length, entropy."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from sdkernels.lab.contexts import CONTEXTS
from sdkernels.lab.problems import Problem, draw_distinct
from sdkernels.lab.sample import Sampled, sample
from sdkernels.lab.traces import Worked, parse
from sdkernels.lab.vocabulary import WAIT, decode, encode
from sdkernels.train.statistics import pass_at_k

# The longest step with its check, and its separator; the answer and `<end>`.
STEP_TOKENS, ANSWER_TOKENS = 29, 4
EVAL_TEMPERATURE = 1.0

# Metrics that are a mean over problems, each with its title; the others are shares of all steps.
PER_PROBLEM = {
    "accuracy": "accuracy (Avg@k)",
    "pass_at_k": "Pass@k",
    "step_accuracy": "step accuracy",
    "waits": "waits per response",
    "length": "length, tokens",
    "entropy": "entropy, nats",
}


@dataclass(frozen=True)
class ProblemSet:
    """Problems that are evaluated together."""

    name: str
    problems: tuple[Problem, ...]


@dataclass(frozen=True)
class Graded:
    """A response to a problem, read back."""

    problem: Problem
    sampled: Sampled
    worked: list[Worked]
    answer: int | None

    @property
    def correct(self) -> bool:
        """Whether the final answer is right."""
        return self.answer == self.problem.answer

    @property
    def waits(self) -> int:
        """Number of `wait` tokens."""
        return self.sampled.ids.count(WAIT)

    def given(self) -> list[int]:
        """The value that each step starts from, as the response itself has it."""
        return [self.problem.start, *(step.result for step in self.worked)][: len(self.worked)]

    def right_steps(self) -> list[bool]:
        """Whether each step is right for the value that it starts from."""
        pairs = zip(self.worked, self.given(), strict=True)
        return [own.result == own.step.apply(value) for own, value in pairs]


def room(problems: Sequence[Problem]) -> int:
    """Tokens that the longest well-formed response to any of these can have."""
    return STEP_TOKENS * max(len(problem.steps) for problem in problems) + ANSWER_TOKENS


def grade(problem: Problem, sampled: Sampled) -> Graded:
    """Read a response back."""
    worked, answer = parse(problem, decode(sampled.ids))
    return Graded(problem, sampled, worked, None if sampled.truncated else answer)


def evaluate(
    model: Any,
    problems: Sequence[Problem],
    *,
    samples: int,
    seed: int,
    temperature: float = EVAL_TEMPERATURE,
    banned: Sequence[int] = (),
    context: str = "none",
) -> dict[str, Any]:
    """Metrics over `samples` responses to each problem; see `measure`.

    Args:
        banned: ids that are never chosen.
        context: what the model sees besides the problem. A `step_critique` is of a response that
            the model gives without context.
    """
    generator = torch.Generator().manual_seed(seed)
    rows = [problem for problem in problems for _ in range(samples)]
    prompts = [encode(problem.prompt()) for problem in rows]
    settings: dict[str, Any] = {"generator": generator, "max_new_tokens": room(problems)}
    shown = CONTEXTS[context]
    own: list[list[str]] = [[] for _ in rows]
    if shown.reads_response:
        own = [
            decode(one.ids) for one in sample(model, prompts, temperature=temperature, **settings)
        ]
    # Without a readable step there is nothing to criticise: the teacher sees the problem alone.
    words = [shown.build(*pair) or [] for pair in zip(rows, own, strict=True)]
    prompts = [encode(problem.prompt(seen)) for problem, seen in zip(rows, words, strict=True)]
    found = sample(model, prompts, temperature=temperature, banned=banned, **settings)
    return measure([grade(*pair) for pair in zip(rows, found, strict=True)], samples)


def measure(graded: Sequence[Graded], samples: int) -> dict[str, Any]:
    """Means over responses, and what they are means of, by problem.

    Args:
        graded: `samples` responses in a row for each problem.

    Returns:
        the metrics of `PER_PROBLEM`; of all steps: `guess_accuracy`, `noticed` (share of wrong
        guesses followed by `wait`), `doubted` (share of right ones), `rescued` (share of waits
        after a wrong guess that end right), each None without such a step; `well_formed` and
        `truncated`, shares of responses; `problems`: lists of the `PER_PROBLEM` metrics.
    """
    groups = [graded[at : at + samples] for at in range(0, len(graded), samples)]
    by_problem: dict[str, list[float]] = {name: [] for name in PER_PROBLEM}
    for group in groups:
        num_right = sum(one.correct for one in group)
        by_problem["accuracy"].append(num_right / samples)
        by_problem["pass_at_k"].append(pass_at_k(samples, num_right, samples))
        steps = len(group[0].problem.steps) * samples
        by_problem["step_accuracy"].append(sum(sum(one.right_steps()) for one in group) / steps)
        by_problem["waits"].append(sum(one.waits for one in group) / samples)
        by_problem["length"].append(sum(len(one.sampled.ids) for one in group) / samples)
        by_problem["entropy"].append(sum(_mean(one.sampled.entropy) for one in group) / samples)
    means = {name: _mean(values) for name, values in by_problem.items()}
    return {
        **means,
        **_step_shares(graded),
        "waits_per_100_tokens": 100 * means["waits"] / means["length"],
        "well_formed": _mean([one.answer is not None for one in graded]),
        "truncated": _mean([one.sampled.truncated for one in graded]),
        "problems": by_problem,
    }


def _step_shares(graded: Sequence[Graded]) -> Mapping[str, float | None]:
    pairs = [pair for one in graded for pair in zip(one.worked, one.given(), strict=True)]
    right = [own for own, value in pairs if own.guess == own.step.apply(value)]
    wrong = [(own, value) for own, value in pairs if own.guess != own.step.apply(value)]
    rescued = [own.result == own.step.apply(value) for own, value in wrong if own.waited]
    return {
        "guess_accuracy": len(right) / len(pairs) if pairs else None,
        "noticed": _mean([own.waited for own, _ in wrong]) if wrong else None,
        "doubted": _mean([own.waited for own in right]) if right else None,
        "rescued": _mean(rescued) if rescued else None,
    }


def problem_sets(
    families: tuple[str, ...],
    others: tuple[str, ...],
    *,
    lengths: tuple[int, ...],
    long_lengths: tuple[int, ...],
    size: int,
    seed: int,
) -> list[ProblemSet]:
    """Fresh problems of the trained kind, longer chains of its families, and other families.

    The problems depend on these arguments alone, so that all models meet the same.
    """
    rng = random.Random(f"evaluation {seed} {families}")
    kinds = {
        "in_domain": (families, lengths),
        "longer": (families, long_lengths),
        "other": (others, lengths),
    }
    return [
        ProblemSet(name, tuple(draw_distinct(rng, *kind, size))) for name, kind in kinds.items()
    ]


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values)
