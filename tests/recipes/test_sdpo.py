import math
from typing import Any

import pytest
import torch
from recipes.world import (
    World,
    check,
    make_world,
    run_engine,
    run_plain,
    surrogate,
    teacher_is_student,
    two_way_world,
)
from torch import Tensor

from sdkernels import recipes


def weight(world: World, clip: float = 2.0) -> Tensor:
    """min(S / S_old, clip), a constant."""
    logp = world.at_y(world.student_logp()).detach()
    return (logp - world.tokens["old_logp"]).exp().clamp(max=clip)


def jsd(s: Tensor, t: Tensor, alpha: float) -> Tensor:
    """alpha KL(T||M) + (1 - alpha) KL(S||M), the KLs at the ends; [C, V] probabilities."""
    if alpha == 0:
        return (t * (t / s).log()).sum(-1)
    if alpha == 1:
        return (s * (s / t).log()).sum(-1)
    m = alpha * t + (1 - alpha) * s
    return (alpha * t * (t / m).log() + (1 - alpha) * s * (s / m).log()).sum(-1)


def on_support(world: World, *, of: str, k: int, tail: bool) -> tuple[Tensor, Tensor]:
    """Probabilities of student and teacher on the top-k, by subtraction and division."""
    s, t = world.student_logp().exp(), world.teacher_logp().exp()
    ids = (s if of == "student" else t).detach().topk(k).indices
    s, t = s.gather(-1, ids), t.gather(-1, ids)
    if tail:
        rest_s, rest_t = 1 - s.sum(-1, keepdim=True), 1 - t.sum(-1, keepdim=True)
        return torch.cat([s, rest_s], -1), torch.cat([t, rest_t], -1)
    return s / s.sum(-1, keepdim=True), t / t.sum(-1, keepdim=True)


@pytest.mark.parametrize("alpha", [0.0, 0.2, 0.5, 1.0])
def test_full_vocabulary(alpha: float) -> None:
    def formula(world: World) -> Tensor:
        s, t = world.student_logp().exp(), world.teacher_logp().exp()
        return weight(world) * jsd(s, t, alpha)

    check(recipes.get("sdpo", alpha=alpha), formula, make_world())


def test_the_default_is_the_even_jsd_with_weights_clipped_at_2() -> None:
    recipe = recipes.get("sdpo")
    assert recipe.engine == {"jsd_beta": 0.5}
    assert (recipe.config["alpha"], recipe.config["is_clip"]) == (0.5, 2.0)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("tail", [True, False])
@pytest.mark.parametrize("of", ["student", "teacher"])
@pytest.mark.parametrize("k", [2, 9])
def test_top_k(of: str, k: int, tail: bool, alpha: float) -> None:
    def formula(world: World) -> Tensor:
        return weight(world) * jsd(*on_support(world, of=of, k=k, tail=tail), alpha)

    recipe = recipes.get("sdpo", support=f"{of}_topk", topk=k, tail=tail, alpha=alpha)
    check(recipe, formula, make_world(seed=k))


def test_one_id_and_a_tail() -> None:
    def formula(world: World) -> Tensor:
        return weight(world) * jsd(*on_support(world, of="student", k=1, tail=True), 0.5)

    check(recipes.get("sdpo", support="student_topk", topk=1), formula, make_world())


def test_top_k_of_everything_is_the_full_vocabulary() -> None:
    world = make_world()
    every_id = recipes.get("sdpo", support="student_topk", topk=world.teacher_CV.shape[-1])
    torch.testing.assert_close(
        run_engine(every_id, world), run_engine(recipes.get("sdpo"), world), rtol=1e-9, atol=1e-11
    )


def test_sampled_token() -> None:
    def formula(world: World) -> Tensor:
        log_s, log_t = world.at_y(world.student_logp()), world.at_y(world.teacher_logp())
        return weight(world) * (log_s - log_t).detach() * log_s

    check(recipes.get("sdpo", support="sampled"), formula, make_world())


def test_the_sampled_gradient_is_that_of_kl_student_teacher_on_average() -> None:
    """Weighted by S(y) it adds up to the gradient of KL(S||T), not of KL(T||S)."""
    sampled, whole = recipes.get("sdpo", support="sampled"), recipes.get("sdpo", alpha=1.0)
    mean = sum(
        p * run_plain(sampled, two_way_world(0.3, 0.6, y=y))[2] for y, p in ((0, 0.3), (1, 0.7))
    )
    torch.testing.assert_close(mean, run_plain(whole, two_way_world(0.3, 0.6))[2])


@pytest.mark.parametrize(("ratio", "expected"), [(0.1, 0.1), (1.7, 1.7), (2.3, 2.0), (40.0, 2.0)])
def test_the_weight_is_clipped_from_above_only(ratio: float, expected: float) -> None:
    recipe = recipes.get("sdpo", alpha=0.0)
    on_policy = run_plain(recipe, two_way_world(0.5, 0.9))
    off_policy = run_plain(recipe, two_way_world(0.5, 0.9, old_logp=math.log(0.5 / ratio)))
    for once, weighted in zip(on_policy, off_policy, strict=True):
        torch.testing.assert_close(weighted, expected * once)


def test_no_weight_where_it_is_off() -> None:
    world = make_world()
    recipe = recipes.get("sdpo", is_clip=None)
    for with_old, without in zip(
        run_plain(recipe, world), run_plain(recipe, world.without("old_logp")), strict=True
    ):
        assert torch.equal(with_old, without)
    assert recipe.needs == {"teacher"}


def test_on_policy_it_asks_for_no_targets() -> None:
    """The divergence of a whole distribution has no use for the sampled id."""
    import sdkernels as sd

    world = make_world().without("old_logp")
    loss, _ = sd.token_loss(
        world.hidden_CD,
        world.weight_VD,
        recipes.get("sdpo").loss_fn,
        teacher=sd.LogitsTeacher(world.teacher_CV),
        tokens=world.tokens,
        jsd_beta=0.5,
    )
    torch.testing.assert_close(loss.detach(), run_plain(recipes.get("sdpo"), world)[0])


def test_numbers_by_hand() -> None:
    """S = (.5, .5), T = (.9, .1): a quarter towards T the mixture is (.6, .4)."""
    loss = run_plain(recipes.get("sdpo", alpha=0.25), two_way_world(0.5, 0.9))[0].item()
    teacher = 0.9 * math.log(0.9 / 0.6) + 0.1 * math.log(0.1 / 0.4)
    student = 0.5 * math.log(0.5 / 0.6) + 0.5 * math.log(0.5 / 0.4)
    assert loss == pytest.approx(0.25 * teacher + 0.75 * student)


@pytest.mark.parametrize("support", ["full", "student_topk", "teacher_topk", "sampled"])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_step_0(support: str, alpha: float) -> None:
    """Teacher equal to student: exactly 0 on the full vocabulary and on the sampled token.

    On a top-k list the mixture and S - T are sums of logarithms: 0 to rounding.
    """
    cfg: dict[str, Any] = {} if support == "sampled" else {"alpha": alpha}
    cfg |= {"topk": 5} if support.endswith("topk") else {}
    recipe = recipes.get("sdpo", support=support, **cfg)
    loss, hidden, weight_grad = run_engine(recipe, teacher_is_student(make_world()))
    limit = 1e-14 if support.endswith("topk") else 0.0
    assert abs(loss) <= limit
    assert hidden.abs().max() <= limit
    assert weight_grad.abs().max() <= limit


def test_alpha_is_refused_on_the_sampled_token() -> None:
    """TRL's default mode once raised deep inside for alpha = 0.5 (TRL issue 5573)."""
    with pytest.raises(ValueError, match=r"alpha=0.5 has no effect with support='sampled'"):
        recipes.get("sdpo", support="sampled", alpha=0.5)
    assert recipes.get("sdpo", support="sampled", alpha=1).config["alpha"] == 1.0


def test_one_renormalised_id_is_refused() -> None:
    with pytest.raises(ValueError, match=r"topk=1 with tail=False gives no signal"):
        recipes.get("sdpo", support="student_topk", topk=1, tail=False)


@pytest.mark.parametrize("support", ["full", "sampled"])
def test_the_hybrid_adds_grpo(support: str) -> None:
    def formula(world: World) -> Tensor:
        log_s, log_t = world.at_y(world.student_logp()), world.at_y(world.teacher_logp())
        pulled = (log_s - log_t).detach() * log_s
        if support == "full":
            pulled = jsd(world.student_logp().exp(), world.teacher_logp().exp(), 0.5)
        return 0.9 * surrogate(world) + 0.1 * weight(world) * pulled

    recipe = recipes.get("sdpo", grpo_weight=0.9, support=support)
    check(recipe, formula, make_world())
    assert recipe.needs == {"teacher", "rewards", "group", "old_logp"}
    assert recipe.anchored


def test_the_hybrid_without_a_context_is_grpo_alone() -> None:
    world = make_world()
    silent = world.having(signal=torch.zeros(12))
    grpo = run_plain(recipes.get("grpo"), world)
    for ours, theirs in zip(
        run_plain(recipes.get("sdpo", grpo_weight=0.9), silent), grpo, strict=True
    ):
        torch.testing.assert_close(ours, 0.9 * theirs)


def test_the_sampled_gap_is_bounded_by_a_setting() -> None:
    """5 nats in the test-time setting."""
    world = two_way_world(0.5, 1e-6)
    loss = run_plain(recipes.get("sdpo", support="sampled", gap_clip=5.0), world)[0]
    assert loss.item() == pytest.approx(5.0 * math.log(0.5))


def test_settings_of_the_hybrid_without_it_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"clip_low=0.1 has no effect .* use it with grpo_weight > 0"
    ):
        recipes.get("sdpo", clip_low=0.1)
    assert recipes.get("sdpo").config["clip_low"] is None
