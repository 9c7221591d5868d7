"""Training data of the base model: traces of all families and lengths, half of them in context."""

from __future__ import annotations

import random
from dataclasses import dataclass

from sdkernels.lab.contexts import CONTEXTS
from sdkernels.lab.problems import FAMILIES, MAX_STEPS, draw
from sdkernels.lab.traces import finish
from sdkernels.lab.vocabulary import END, encode

CONTEXT_SHARE = 0.5
LENGTH_WEIGHTS = (0.1, 0.28, 0.28, 0.16, 0.1, 0.08)


@dataclass(frozen=True)
class Sample:
    """Token ids of one training text; those from `start` on are the response, which is learnt."""

    ids: list[int]
    start: int


def draw_sample(rng: random.Random) -> Sample:
    """One trace: half of them unaided, the others with one of the contexts."""
    family = rng.choice(list(FAMILIES))
    num_steps = rng.choices(range(1, MAX_STEPS + 1), LENGTH_WEIGHTS)[0]
    problem = draw(rng, family, num_steps)
    name = "none"
    if rng.random() < CONTEXT_SHARE:
        name = rng.choice([name for name in CONTEXTS if name != "none"])
    context, worked = CONTEXTS[name].show(rng, problem)
    prompt = encode(problem.prompt(context))
    return Sample([*prompt, *encode(finish(worked)), END], len(prompt))


def batches(rng: random.Random, num_tokens: int) -> list[list[Sample]]:
    """Batches of similar length, about `num_tokens` each with padding, in random order."""
    pool = sorted((draw_sample(rng) for _ in range(1024)), key=lambda sample: len(sample.ids))
    found: list[list[Sample]] = [[]]
    for sample in pool:
        if (len(found[-1]) + 1) * len(sample.ids) > num_tokens and found[-1]:
            found.append([])
        found[-1].append(sample)
    rng.shuffle(found)
    return found
