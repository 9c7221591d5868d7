import copy
import math
from typing import Any

import pytest
import torch

from sdkernels import recipes
from sdkernels.lab import distill
from sdkernels.lab.conditions import CONDITIONS, Cell, Condition
from sdkernels.lab.contexts import CONTEXTS
from sdkernels.lab.distill import (
    DistillPlan,
    seed_of,
    step_gradient,
    train_cell,
    training_problems,
)
from sdkernels.lab.evaluate import Graded, grade
from sdkernels.lab.problems import Problem, Step
from sdkernels.lab.sample import Sampled
from sdkernels.lab.vocabulary import END, encode

PLAN = DistillPlan(steps=2, prompts=2, rollouts=2, lengths=(1,))
PROBLEM = Problem("sum", 47, (Step("+", 36),))
RIGHT, WRONG, UNREADABLE = "+ 3 6 = 8 3 ; answer 8 3", "+ 3 6 = 7 3 ; answer 7 3", "wait 8"


def graded(*texts: str) -> list[Graded]:
    return [
        grade(PROBLEM, Sampled([*encode(text.split()), END], [0.0] * (len(text.split()) + 1)))
        for text in texts
    ]


def step_loss(
    model: Any, base: Any, condition: Condition, rows: list[Graded]
) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    model.zero_grad(set_to_none=True)
    record = step_gradient(model, base, condition, rows, PLAN)
    return record, {name: p.grad.clone() for name, p in model.named_parameters()}


def apart(model: Any) -> Any:
    """A student that differs from its base."""
    student = copy.deepcopy(model)
    torch.manual_seed(1)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return student


def logp_of(model: Any, prompt: list[str], one: Graded) -> torch.Tensor:
    ids = encode(prompt) + one.sampled.ids
    start = len(encode(prompt)) - 1
    return model(torch.tensor([ids])).logits[0, start:-1].log_softmax(-1)


def test_the_pull_is_the_jsd_to_the_teacher_in_context(blank_model: Any) -> None:
    """Value and gradient against plain torch, one row at a time."""
    student, rows = apart(blank_model), graded(RIGHT, WRONG, RIGHT, WRONG)
    record, ours = step_loss(student, blank_model, CONDITIONS["pull_solution"], rows)
    student.zero_grad()
    total, count = torch.zeros(()), 0
    for one in rows:
        context = CONTEXTS["solution"].build(PROBLEM, [])
        S = logp_of(student, PROBLEM.prompt(), one)
        with torch.no_grad():
            T = logp_of(blank_model, PROBLEM.prompt(context), one)
        M = torch.logaddexp(S, T) - math.log(2)
        jsd = 0.5 * (S.exp() * (S - M)).sum(-1) + 0.5 * (T.exp() * (T - M)).sum(-1)
        total, count = total + jsd.sum(), count + len(jsd)
    (total / count).backward()
    assert record["loss"] == pytest.approx(float((total / count).detach()), rel=1e-4)
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=1e-6)


def test_grpo_is_the_policy_gradient_of_the_group(blank_model: Any) -> None:
    rows = graded(RIGHT, WRONG, RIGHT, RIGHT)
    _, ours = step_loss(blank_model, None, CONDITIONS["grpo"], rows)
    blank_model.zero_grad()
    # Groups of two: one right and one wrong are one standard deviation of 1/sqrt(2) apart; the
    # second group, all right, has nothing to tell.
    advantages = [1 / math.sqrt(2), -1 / math.sqrt(2), 0, 0]
    total, count = torch.zeros(()), 0
    for one, advantage in zip(rows, advantages, strict=True):
        logp_LV = logp_of(blank_model, PROBLEM.prompt(), one)
        logp_L = logp_LV.gather(-1, torch.tensor(one.sampled.ids).unsqueeze(-1))
        total, count = total - advantage * logp_L.sum(), count + len(logp_L)
    (total / count).backward()
    for name, parameter in blank_model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", ["grpo_pull", "grpo_push", "dasd"])
def test_the_routed_signal_has_the_sign_of_its_gate(blank_model: Any, name: str) -> None:
    """Where the verifier is silent (all wrong), a step moves towards or away from the teacher."""
    student, rows = apart(blank_model), graded(*[WRONG] * 4)
    condition = CONDITIONS[name]
    record, ours = step_loss(student, blank_model, condition, rows)
    _, towards = step_loss(student, blank_model, CONDITIONS["grpo_pull"], rows)
    agreement = sum(float((ours[key] * towards[key]).sum()) for key in ours)
    assert {"grpo_pull": agreement > 0, "grpo_push": agreement < 0, "dasd": True}[name]
    shares = {"grpo_pull": 0.0, "grpo_push": 1.0, "dasd": 0.2}
    assert record["push_share"] == pytest.approx(shares[name], abs=0.12)


def test_rows_without_a_context_have_no_weight(blank_model: Any) -> None:
    student, condition = apart(blank_model), CONDITIONS["pull_step_critique"]
    record, ours = step_loss(
        student, blank_model, condition, graded(WRONG, UNREADABLE, WRONG, UNREADABLE)
    )
    _, alone = step_loss(student, blank_model, condition, graded(WRONG, WRONG))
    assert record["signal_share"] == 0.5
    for name in ours:
        torch.testing.assert_close(ours[name], alone[name], rtol=1e-4, atol=1e-7)
    record, nothing = step_loss(student, blank_model, condition, graded(UNREADABLE))
    assert record["loss"] == record["signal_share"] == 0
    assert record["gap"] is None
    assert not any(gradient.any() for gradient in nothing.values())


def test_a_teacher_without_context_gives_no_gradient(blank_model: Any) -> None:
    condition = Condition("x", "x", "sdpo", "none")
    record, gradients = step_loss(blank_model, blank_model, condition, graded(RIGHT, WRONG))
    assert record["loss"] == record["gap"] == record["kl_teacher_student"] == 0
    assert not any(gradient.any() for gradient in gradients.values())


def test_a_cell_repeats_and_leaves_the_base_alone(blank_model: Any) -> None:
    cell = Cell("pull_solution", 3, ("sum",), 5)
    problems = training_problems(cell, PLAN)
    before = [parameter.clone() for parameter in blank_model.parameters()]
    model, steps = train_cell(blank_model, cell, PLAN, problems)
    again, same = train_cell(blank_model, cell, PLAN, problems)
    assert steps == same
    assert len(steps) == PLAN.steps
    for ours, theirs, base, was in zip(
        model.parameters(), again.parameters(), blank_model.parameters(), before, strict=True
    ):
        assert torch.equal(ours, theirs)
        assert torch.equal(base, was)
    assert any(
        not torch.equal(ours, base)
        for ours, base in zip(model.parameters(), blank_model.parameters(), strict=True)
    )


@pytest.mark.parametrize(("coverage", "expected"), [(1, 1), (3, 3), (5, 4)])
def test_few_problems_are_repeated_and_many_are_met_in_turn(
    blank_model: Any, monkeypatch: pytest.MonkeyPatch, coverage: int, expected: int
) -> None:
    met: list[Problem] = []
    roll_out = distill.roll_out

    def spy(model: Any, problems: Any, *rest: Any) -> list[Graded]:
        met.extend(problems)
        return roll_out(model, problems, *rest)

    monkeypatch.setattr(distill, "roll_out", spy)
    cell = Cell("grpo", coverage, ("sum", "product"), 0)
    train_cell(blank_model, cell, PLAN, training_problems(cell, PLAN))
    assert len(met) == PLAN.steps * PLAN.prompts
    assert len(set(met)) == expected


def test_conditions_of_one_seed_train_on_the_same_problems() -> None:
    first, other = (
        training_problems(Cell(name, 4, ("sum",), 0), PLAN) for name in ("grpo", "dasd")
    )
    next_seed = training_problems(Cell("grpo", 4, ("sum",), 1), PLAN)
    more = training_problems(Cell("grpo", 6, ("sum",), 0), PLAN)
    assert first == other == more[:4]
    assert first != next_seed
    held_out = frozenset(first)
    assert not held_out & set(training_problems(Cell("grpo", 4, ("sum",), 0), PLAN, held_out))


def test_seeds_depend_on_all_parts() -> None:
    assert seed_of("a", 1) == seed_of("a", 1) == 4_580_032_017_972
    assert len({seed_of("a", 1), seed_of("a", 2), seed_of("b", 1)}) == 3


def test_every_recipe_input_is_provided() -> None:
    for condition in CONDITIONS.values():
        recipe = recipes.get(condition.recipe, **condition.settings)
        assert recipe.inputs <= {"weight", "adv", "gap_scale"}
