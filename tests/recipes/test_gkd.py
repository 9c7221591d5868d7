import pytest
import torch
from recipes.world import (
    World,
    check,
    make_world,
    run_engine,
    run_plain,
    teacher_is_student,
    two_way_world,
)
from torch import Tensor
from torch.nn import functional as F

from sdkernels import recipes


@pytest.mark.parametrize("beta", [0.0, 0.1, 0.5, 0.9, 1.0])
def test_it_is_the_generalised_jsd(beta: float) -> None:
    def formula(world: World) -> Tensor:
        s, t = world.student_logp().exp(), world.teacher_logp().exp()
        if beta == 0:
            return (t * (t / s).log()).sum(-1)
        if beta == 1:
            return (s * (s / t).log()).sum(-1)
        m = beta * t + (1 - beta) * s
        return beta * (t * (t / m).log()).sum(-1) + (1 - beta) * (s * (s / m).log()).sum(-1)

    check(recipes.get("gkd", beta=beta), formula, make_world())


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_it_agrees_with_trl(beta: float) -> None:
    gkd_trainer = pytest.importorskip("trl.experimental.gkd.gkd_trainer")
    world = make_world()
    logits_CV = world.logits_CV()
    summed = gkd_trainer.GKDTrainer.generalized_jsd_loss(
        logits_CV[None], world.teacher_CV[None], beta=beta, reduction="sum"
    )
    expected = torch.autograd.grad(summed, [world.hidden_CD, world.weight_VD])
    ones = world.having(weight=torch.ones(12, dtype=torch.float64))
    loss, *gradients = run_engine(recipes.get("gkd", beta=beta), ones)
    # TRL makes its beta a tensor of the logits' dtype, we don't: equal to rounding.
    torch.testing.assert_close(loss, summed.detach(), rtol=1e-10, atol=0)
    torch.testing.assert_close(tuple(gradients), expected, rtol=1e-9, atol=1e-12)


def test_the_default_is_even() -> None:
    assert recipes.get("gkd").engine == {"jsd_beta": 0.5}
    assert recipes.get("gkd", beta=0).engine == {}


def test_ends_by_hand() -> None:
    """beta 0 is KL(T||S), beta 1 is KL(S||T); F.kl_div(input, target) is KL(target||input)."""
    world = two_way_world(0.2, 0.7)
    s, t = world.student_logp().detach(), world.teacher_logp()
    teacher_student = F.kl_div(s, t, log_target=True, reduction="sum")
    student_teacher = F.kl_div(t, s, log_target=True, reduction="sum")
    assert abs(teacher_student - student_teacher) > 0.01
    torch.testing.assert_close(run_plain(recipes.get("gkd", beta=0), world)[0], teacher_student)
    torch.testing.assert_close(run_plain(recipes.get("gkd", beta=1), world)[0], student_teacher)


@pytest.mark.parametrize("beta", [0.0, 0.5, 1.0])
def test_step_0_is_exactly_0(beta: float) -> None:
    for part in run_engine(recipes.get("gkd", beta=beta), teacher_is_student(make_world())):
        assert not part.any()
