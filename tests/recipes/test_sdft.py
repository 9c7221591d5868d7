import pytest
import torch
from recipes.world import World, check, make_world, run_engine, run_plain, teacher_is_student
from torch import Tensor

from sdkernels import recipes


def kl_teacher_student(world: World) -> Tensor:
    log_s, log_t = world.student_logp(), world.teacher_logp()
    return (log_t.exp() * (log_t - log_s)).sum(-1)


def test_it_is_kl_teacher_student() -> None:
    """The paper's text says the reverse; its author confirmed this direction."""
    check(recipes.get("sdft"), kl_teacher_student, make_world())


def test_its_gradient_is_student_minus_teacher() -> None:
    world = make_world()
    grad_VD = run_plain(recipes.get("sdft"), world)[2]
    difference = world.student_logp().exp() - world.teacher_logp().exp()
    expected = (world.tokens["weight"][:, None] * difference).T @ world.hidden_CD
    torch.testing.assert_close(grad_VD, expected.detach())


def test_alpha_picks_the_divergence_of_trl() -> None:
    def formula(world: World) -> Tensor:
        s, t = world.student_logp().exp(), world.teacher_logp().exp()
        m = 0.5 * s + 0.5 * t
        return 0.5 * (t * (t / m).log()).sum(-1) + 0.5 * (s * (s / m).log()).sum(-1)

    check(recipes.get("sdft", alpha=0.5), formula, make_world())


@pytest.mark.parametrize("tail", [True, False])
def test_teacher_top_k(tail: bool) -> None:
    def formula(world: World) -> Tensor:
        s, t = world.student_logp().exp(), world.teacher_logp().exp()
        ids = t.topk(4).indices
        s, t = s.gather(-1, ids), t.gather(-1, ids)
        if tail:
            s = torch.cat([s, 1 - s.sum(-1, keepdim=True)], -1)
            t = torch.cat([t, 1 - t.sum(-1, keepdim=True)], -1)
        s, t = s / s.sum(-1, keepdim=True), t / t.sum(-1, keepdim=True)
        return (t * (t / s).log()).sum(-1)

    check(recipes.get("sdft", support="teacher_topk", topk=4, tail=tail), formula, make_world())


def test_step_0_is_exactly_0() -> None:
    for part in run_engine(recipes.get("sdft"), teacher_is_student(make_world())):
        assert not part.any()
