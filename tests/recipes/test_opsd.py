import math

import pytest
import torch
from recipes.world import (
    C,
    World,
    check,
    make_world,
    run_engine,
    run_plain,
    teacher_is_student,
    two_way_world,
)
from torch import Tensor

from sdkernels import recipes


def entries(world: World, temperature: float = 1.1, teacher_temperature: float = 1.1) -> Tensor:
    """T (log T - log S), [C, V]."""
    log_s, log_t = world.student_logp(temperature), world.teacher_logp(teacher_temperature)
    return log_t.exp() * (log_t - log_s)


def test_by_default_each_entry_of_kl_teacher_student_is_clipped() -> None:
    check(recipes.get("opsd"), lambda w: entries(w).clamp(max=0.05).sum(-1), make_world())


@pytest.mark.parametrize("clip", [0.01, 0.2])
def test_the_clip_is_a_setting(clip: float) -> None:
    recipe = recipes.get("opsd", entry_clip=clip)
    check(recipe, lambda w: entries(w).clamp(max=clip).sum(-1), make_world())


def test_without_clip_it_is_kl_teacher_student() -> None:
    check(recipes.get("opsd", entry_clip=None), lambda w: entries(w).sum(-1), make_world())


def test_beta_1_is_kl_student_teacher() -> None:
    def formula(world: World) -> Tensor:
        log_s, log_t = world.student_logp(1.1), world.teacher_logp(1.1)
        return (log_s.exp() * (log_s - log_t)).sum(-1)

    check(recipes.get("opsd", beta=1), formula, make_world())


@pytest.mark.parametrize("beta", [0.5, 0.1])
def test_beta_between_is_the_jsd(beta: float) -> None:
    """Version 1 of the paper, 0.5; 0.1 tells which side the weight belongs to."""

    def formula(world: World) -> Tensor:
        s, t = world.student_logp(1.1).exp(), world.teacher_logp(1.1).exp()
        m = beta * t + (1 - beta) * s
        return (beta * t * (t / m).log() + (1 - beta) * s * (s / m).log()).sum(-1)

    check(recipes.get("opsd", beta=beta), formula, make_world())


def test_teacher_temperature_can_differ() -> None:
    recipe = recipes.get("opsd", entry_clip=None, temperature=1.3, teacher_temperature=1.0)
    check(recipe, lambda w: entries(w, 1.3, 1.0).sum(-1), make_world())


@pytest.mark.parametrize("clip", [None, 0.05])
def test_teacher_top_k_is_renormalised_on_both_sides(clip: float | None) -> None:
    def formula(world: World) -> Tensor:
        log_s, log_t = world.student_logp(1.1), world.teacher_logp(1.1)
        ids = log_t.topk(7).indices
        log_s, log_t = log_s.gather(-1, ids), log_t.gather(-1, ids)
        t = log_t.exp() / log_t.exp().sum(-1, keepdim=True)
        s = log_s.exp() / log_s.exp().sum(-1, keepdim=True)
        return (t * (t / s).log()).clamp(max=math.inf if clip is None else clip).sum(-1)

    recipe = recipes.get("opsd", support="teacher_topk", topk=7, entry_clip=clip)
    check(recipe, formula, make_world())


def test_numbers_by_hand() -> None:
    """S = (.5, .5), T = (.9, .1) at temperature 1: KL(T||S) = .3681, KL(S||T) = .5108."""
    world = two_way_world(0.5, 0.9)
    recipe = recipes.get("opsd", entry_clip=None, temperature=1.0)
    loss, _, grad_VD = run_plain(recipe, world)
    assert loss.item() == pytest.approx(0.9 * math.log(1.8) + 0.1 * math.log(0.2))
    # d/dz = S - T: descending raises what the teacher likes.
    torch.testing.assert_close(grad_VD[:, 0].tolist(), [-0.4, 0.4])
    reversed_loss = run_plain(recipes.get("opsd", beta=1.0, temperature=1.0), world)[0]
    assert reversed_loss.item() == pytest.approx(0.5 * math.log(0.5 / 0.9) + 0.5 * math.log(5.0))


def test_the_clip_can_make_the_loss_negative() -> None:
    """min(.529, .05) + .1 log(.2) = -.111: reported as a bug elsewhere, and legitimate."""
    loss = run_plain(recipes.get("opsd", temperature=1.0), two_way_world(0.5, 0.9))[0]
    assert loss.item() == pytest.approx(0.05 + 0.1 * math.log(0.2))


def test_step_0_is_exactly_0() -> None:
    """Student and teacher are the same: nothing may move, not even by a rounding error."""
    for cfg in ({}, {"entry_clip": None}, {"beta": 1.0}, {"beta": 0.5}):
        for part in run_engine(recipes.get("opsd", **cfg), teacher_is_student(make_world())):
            assert not part.any(), cfg


def test_an_entry_clip_is_refused_where_none_is_defined() -> None:
    with pytest.raises(ValueError, match=r"entry_clip=0.1 has no effect with beta=0.5.*beta=0.0"):
        recipes.get("opsd", beta=0.5, entry_clip=0.1)
    assert recipes.get("opsd", beta=0.5).config["entry_clip"] is None


def test_one_renormalised_id_is_refused() -> None:
    with pytest.raises(ValueError, match="no signal"):
        recipes.get("opsd", support="teacher_topk", topk=1)


def test_on_the_sampled_token_it_is_a_policy_gradient_towards_the_teacher() -> None:
    def formula(world: World) -> Tensor:
        log_s = world.at_y(world.student_logp(1.1))
        gap = world.at_y(world.teacher_logp(1.1)) - log_s
        return -gap.detach() * log_s

    recipe = recipes.get("opsd", support="sampled")
    check(recipe, formula, make_world())
    assert (recipe.config["beta"], recipe.config["entry_clip"]) == (1.0, None)
    with pytest.raises(ValueError, match=r"beta=0.5 has no effect with support='sampled'"):
        recipes.get("opsd", support="sampled", beta=0.5)


def test_a_token_that_the_teacher_bans_moves_the_sampled_form_by_a_bounded_step() -> None:
    world = make_world()
    world.teacher_CV[torch.arange(C), world.y_C] = -1e4

    def formula(w: World) -> Tensor:
        return 20.0 * w.at_y(w.student_logp(1.1))

    check(recipes.get("opsd", support="sampled"), formula, world)
