"""What the base model can do before any distillation: the lab's premises, measured.

Is it imperfect, do its waits help, does a teacher that sees a context do better (Table 1 of
2603.24472), and where does each context praise and blame (figure 4 of 2606.11173)?
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from sdkernels.engine import HiddenTeacher, LMHead, token_stats
from sdkernels.lab.contexts import CONTEXTS
from sdkernels.lab.distill import seed_of, teacher_prompts
from sdkernels.lab.evaluate import Graded, ProblemSet, evaluate, grade, room
from sdkernels.lab.model import padded, response_hidden
from sdkernels.lab.sample import sample
from sdkernels.lab.vocabulary import ID, WAIT, encode

KINDS = ("right", "wrong", "wait")


def evaluate_sets(
    model: Any, sets: Sequence[ProblemSet], samples: int, **settings: Any
) -> dict[str, Any]:
    """`evaluate` on each set, by its name."""
    return {
        one.name: evaluate(
            model, one.problems, samples=samples, seed=seed_of("evaluation", one.name), **settings
        )
        for one in sets
    }


def base_facts(model: Any, sets: Sequence[ProblemSet], samples: int) -> dict[str, Any]:
    """Measurements of the base model.

    Returns:
        `without_wait`: evaluation with `wait` banned, by set. `teacher`: evaluation on the first
        set under each context. `gaps`: `step_gaps` on the first set under each context.
    """
    first = sets[0]
    seed = seed_of("evaluation", first.name)
    teacher = {
        name: evaluate(model, first.problems, samples=samples, seed=seed, context=name)
        for name in CONTEXTS
    }
    return {
        "without_wait": evaluate_sets(model, sets, samples, banned=[WAIT]),
        "teacher": teacher,
        "gaps": step_gaps(model, first, samples, seed),
    }


def step_gaps(
    model: Any, problems: ProblemSet, samples: int, seed: int
) -> dict[str, dict[str, float | None]]:
    """Mean log T(y) - log S(y), nats, of the model's own responses under each context, by kind of
    token: results of right and of wrong steps, and `wait`.
    """
    rows = [problem for problem in problems.problems for _ in range(samples)]
    prompts = [encode(problem.prompt()) for problem in rows]
    generator = torch.Generator().manual_seed(seed)
    found = sample(model, prompts, generator=generator, max_new_tokens=room(problems.problems))
    graded = [grade(*pair) for pair in zip(rows, found, strict=True)]
    return {name: gaps_under(model, graded, name) for name in CONTEXTS if name != "none"}


@torch.no_grad()
def gaps_under(model: Any, graded: Sequence[Graded], context: str) -> dict[str, float | None]:
    """`step_gaps` of these responses under one context; None for a kind that does not occur."""
    shown = teacher_prompts(context, graded)
    kept = [at for at, words in enumerate(shown) if words is not None]
    if not kept:
        return dict.fromkeys(KINDS)
    graded = [graded[at] for at in kept]
    responses = [one.sampled.ids for one in graded]
    ids_BL, mask_BL = padded(responses, model.device)
    head = LMHead.from_model(model)
    own = response_hidden(model, [encode(one.problem.prompt()) for one in graded], responses)
    told = response_hidden(model, [shown[at] or [] for at in kept], responses)
    stats = token_stats(own, head, targets=ids_BL, teacher=HiddenTeacher(told, head), mask=mask_BL)
    gap_BL = (stats.teacher_logp - stats.logp).cpu()
    kinds = [token_kinds(one) for one in graded]
    means: dict[str, float | None] = {}
    for kind in KINDS:
        values = [gap_BL[row, at] for row, labels in enumerate(kinds) for at in labels[kind]]
        means[kind] = float(torch.stack(values).mean()) if values else None
    return means


def token_kinds(graded: Graded) -> dict[str, list[int]]:
    """Positions of the result digits of right and of wrong steps, and of `wait`.

    A step's result is its guess, or what stands behind `so` where the step waits.
    """
    found: dict[str, list[int]] = {kind: [] for kind in KINDS}
    ids = graded.sampled.ids
    ends = [at for at, token in enumerate(ids) if token == ID[";"]]
    for at, right in enumerate(graded.right_steps()):
        if at < len(ends):
            found["right" if right else "wrong"] += [ends[at] - 2, ends[at] - 1]
    found["wait"] = [at for at, token in enumerate(ids) if token == WAIT]
    return found
