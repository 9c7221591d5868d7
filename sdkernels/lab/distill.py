"""One cell of the lab: on-policy training from the base model under one condition."""

from __future__ import annotations

import copy
import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdkernels import recipes
from sdkernels.engine import HiddenTeacher, LMHead, TokenStats, token_loss, token_stats
from sdkernels.gates import gap_scale
from sdkernels.lab.conditions import CONDITIONS, Cell, Condition, make_gate
from sdkernels.lab.contexts import CONTEXTS
from sdkernels.lab.evaluate import Graded, grade, room
from sdkernels.lab.model import padded, response_hidden
from sdkernels.lab.problems import Problem, draw_distinct
from sdkernels.lab.sample import sample
from sdkernels.lab.vocabulary import decode, encode


@dataclass(frozen=True)
class DistillPlan:
    """How a cell trains: `prompts` problems a step with `rollouts` responses each.

    A coverage below `prompts` repeats its problems to fill a step, as 2603.24472 does.
    """

    steps: int = 25
    prompts: int = 8
    rollouts: int = 8
    learning_rate: float = 2e-4
    lengths: tuple[int, ...] = (2, 3)


def seed_of(*parts: object) -> int:
    """A seed that depends on all parts, the same on every machine."""
    digest = hashlib.sha256(" ".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:6], "big")


def training_problems(
    cell: Cell, plan: DistillPlan, without: frozenset[Problem] = frozenset()
) -> list[Problem]:
    """The cell's problems: the same for all conditions, none of `without`."""
    rng = random.Random(seed_of("problems", cell.families, cell.seed))
    return draw_distinct(rng, cell.families, plan.lengths, cell.coverage, without=without)


def train_cell(
    base: Any, cell: Cell, plan: DistillPlan, problems: Sequence[Problem]
) -> tuple[Any, list[dict[str, float | None]]]:
    """The trained model and one record a step; `base` stays as it is and teaches."""
    condition = CONDITIONS[cell.condition]
    model = copy.deepcopy(base).train().requires_grad_(True)
    optimizer = torch.optim.AdamW(
        model.parameters(),
        lr=plan.learning_rate,
        betas=(0.9, 0.95),
        weight_decay=0.0,
    )
    generator = torch.Generator().manual_seed(seed_of("rollouts", cell.families, cell.seed))
    order = random.Random(seed_of("order", cell.families, cell.seed))
    queue: list[Problem] = []
    records = []
    for _ in range(plan.steps):
        while len(queue) < plan.prompts:
            queue += order.sample(list(problems), len(problems))
        chosen, queue = queue[: plan.prompts], queue[plan.prompts :]
        graded = roll_out(model, chosen, plan, generator)
        optimizer.zero_grad(set_to_none=True)
        record = step_gradient(model, base, condition, graded, plan)
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        records.append(record | {"grad_norm": float(norm)})
    return model.eval(), records


def roll_out(
    model: Any, problems: Sequence[Problem], plan: DistillPlan, generator: torch.Generator
) -> list[Graded]:
    """`plan.rollouts` responses to each problem, at temperature 1."""
    rows = [problem for problem in problems for _ in range(plan.rollouts)]
    prompts = [encode(problem.prompt()) for problem in rows]
    model.eval()
    found = sample(model, prompts, generator=generator, max_new_tokens=room(problems))
    model.train()
    return [grade(*pair) for pair in zip(rows, found, strict=True)]


def teacher_prompts(context: str, graded: Sequence[Graded]) -> list[list[int] | None]:
    """Ids of what the teacher sees before each response; None where the context gives nothing."""
    found: list[list[int] | None] = []
    for one in graded:
        words = CONTEXTS[context].build(one.problem, decode(one.sampled.ids))
        found.append(None if words is None else encode(one.problem.prompt(words)))
    return found


def step_gradient(
    model: Any, base: Any, condition: Condition, graded: Sequence[Graded], plan: DistillPlan
) -> dict[str, float | None]:
    """Form the gradient of one step, and record what the step saw.

    `base` is only looked at by conditions with a teacher. Rows without a context have weight 0.
    """
    recipe = recipes.get(condition.recipe, **condition.settings)
    prompts = [encode(one.problem.prompt()) for one in graded]
    responses = [one.sampled.ids for one in graded]
    shown = teacher_prompts(condition.context, graded)
    signal_B = torch.tensor([words is not None for words in shown], device=model.device)
    ids_BL, own_BL = padded(responses, model.device)
    mask_BL = own_BL & signal_B.unsqueeze(1)
    hidden_BLD, head = response_hidden(model, prompts, responses), LMHead.from_model(model)
    teacher = None
    if "teacher" in recipe.needs:
        with torch.no_grad():
            filled = [words or prompt for words, prompt in zip(shown, prompts, strict=True)]
            teacher_BLD = response_hidden(base, filled, responses)
        teacher = HiddenTeacher(teacher_BLD, LMHead.from_model(base))
    tokens = {"weight": recipes.aggregate(mask_BL)}
    if "adv" in recipe.inputs:
        tokens["adv"] = _advantages(graded, plan.rollouts, mask_BL)
    if "gap_scale" in recipe.inputs:
        with torch.no_grad():
            before = token_stats(hidden_BLD, head, targets=ids_BL, teacher=teacher, mask=mask_BL)
        tokens["gap_scale"] = gap_scale(before.teacher_logp - before.logp, mask_BL)
    loss, stats = token_loss(
        hidden_BLD,
        head,
        recipe.loss_fn,
        targets=ids_BL,
        teacher=teacher,
        tokens=tokens,
        mask=mask_BL,
        gate=make_gate(condition.gate),
        **recipe.engine,
    )
    loss.backward()
    record = _rollout_record(graded) | _token_record(stats, mask_BL)
    return {"loss": float(loss.detach()), **record}


def _advantages(graded: Sequence[Graded], rollouts: int, mask_BL: Tensor) -> Tensor:
    """The verifier's group advantage of each row, for each of its tokens."""
    rewards_B = torch.tensor([float(one.correct) for one in graded], device=mask_BL.device)
    adv_B = recipes.group_advantages(rewards_B.view(-1, rollouts)).reshape(-1)
    return adv_B.unsqueeze(1).expand(mask_BL.shape).contiguous()


def _rollout_record(graded: Sequence[Graded]) -> dict[str, float]:
    count = len(graded)
    return {
        "reward": sum(one.correct for one in graded) / count,
        "waits": sum(one.waits for one in graded) / count,
        "length": sum(len(one.sampled.ids) for one in graded) / count,
    }


def _token_record(stats: TokenStats, mask_BL: Tensor) -> dict[str, float | None]:
    """Means over the tokens with a signal; None where there is none of what is averaged."""

    def mean(values_BL: Tensor) -> float | None:
        return float(values_BL[mask_BL].mean()) if bool(mask_BL.any()) else None

    taught = "teacher_logp" in stats
    return {
        "entropy": mean(stats.entropy),
        "gap": mean(stats.teacher_logp - stats.logp) if taught else None,
        "kl_teacher_student": mean(stats.kl_teacher_student) if taught else None,
        "push_share": mean((stats.direction < 0).float()) if "direction" in stats else None,
        "signal_share": float(mask_BL.any(dim=1).float().mean()),
    }
