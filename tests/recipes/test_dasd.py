import math
from typing import Any

import pytest
import torch
from recipes.world import (
    C,
    World,
    check,
    make_world,
    plain_stats,
    run_engine,
    run_plain,
    surrogate,
    teacher_is_student,
    two_way_world,
)
from torch import Tensor

import sdkernels as sd
from sdkernels import gates, recipes
from sdkernels.engine.stats import Tokens

DASD = {"push_min_prob": 0.0}


def entropy(world: World) -> Tensor:
    log_s = world.student_logp().detach()
    return -(log_s.exp() * log_s).sum(-1)


def direction(world: World) -> Tensor:
    return ((world.tokens["tau"] - entropy(world)) / world.tokens["sigma"]).tanh()


def gap(world: World) -> Tensor:
    """log T - log S of the sampled token, a constant."""
    return (world.at_y(world.teacher_logp()) - world.at_y(world.student_logp())).detach()


def reliability(world: World, clip: float = 5.0) -> Tensor:
    """sigmoid(|g| - 1) with g the sampled token's gap, normalised and clipped."""
    g = (gap(world) / world.tokens["gap_scale"]).clamp(-clip, clip)
    return 1 / (1 + (1 - g.abs()).exp())


def advantage(world: World, beta: float = 0.2, clip: float = 5.0, factor: Any = None) -> Tensor:
    """A_G + beta w sigmoid(|g| - 1) g."""
    factor = reliability(world, clip) if factor is None else factor
    g = (gap(world) / world.tokens["gap_scale"]).clamp(-clip, clip)
    return world.tokens["adv"] + beta * direction(world) * factor * g


def advantage_form(world: World, **cfg: Any) -> Tensor:
    return surrogate(world.having(adv=advantage(world, **cfg)))


def test_advantage_form() -> None:
    world = make_world()
    assert (direction(world) > 0.1).any()
    assert (direction(world) < -0.1).any()
    check(recipes.get("dasd", **DASD), advantage_form, world)


def test_its_weights_are_settings() -> None:
    recipe = recipes.get("dasd", beta=0.5, gap_clip=1.5, **DASD)
    check(recipe, lambda w: advantage_form(w, beta=0.5, clip=1.5), make_world())


def test_the_reliability_factor_can_be_left_out() -> None:
    recipe = recipes.get("dasd", reliability=False, **DASD)
    check(recipe, lambda w: advantage_form(w, factor=1.0), make_world())


@pytest.mark.parametrize("verifier_weight", [0.0, 0.5])
def test_the_verifier_can_be_weighed_down(verifier_weight: float) -> None:
    def formula(world: World) -> Tensor:
        return advantage_form(world.having(adv=verifier_weight * world.tokens["adv"]))

    recipe = recipes.get("dasd", verifier_weight=verifier_weight, **DASD)
    check(recipe, formula, make_world())


def test_without_signal_it_is_grpo() -> None:
    world = make_world()
    expected = run_engine(recipes.get("grpo"), world)
    torch.testing.assert_close(run_engine(recipes.get("dasd", beta=0.0), world), expected)
    same = teacher_is_student(world)
    torch.testing.assert_close(run_engine(recipes.get("dasd"), same), expected)


@pytest.mark.parametrize("form", ["advantage", "full_vocab"])
def test_step_0_without_verifier_is_exactly_0(form: str) -> None:
    recipe = recipes.get("dasd", form=form, verifier_weight=0.0)
    for part in run_engine(recipe, teacher_is_student(make_world())):
        assert not part.any()


def pull(log_s: Tensor, log_t: Tensor, alpha: float) -> Tensor:
    s, t = log_s.exp(), log_t.exp()
    if alpha == 0:
        return (t * (log_t - log_s)).sum(-1)
    if alpha == 1:
        return (s * (log_s - log_t)).sum(-1)
    return jsd(log_s, log_t, alpha)


def jsd(log_s: Tensor, log_t: Tensor, alpha: float) -> Tensor:
    s, t = log_s.exp(), log_t.exp()
    log_m = (alpha * t + (1 - alpha) * s).log()
    return (alpha * t * (log_t - log_m) + (1 - alpha) * s * (log_s - log_m)).sum(-1)


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("cap", [math.log(2.0), 0.2])
@pytest.mark.parametrize("reliable", [True, False])
def test_full_vocabulary_form(alpha: float, cap: float, reliable: bool) -> None:
    """omega D(S, T) where it pulls, omega min(JSD, cap) where it pushes, next to GRPO; omega is
    tanh sigmoid(|g| - 1), or the tanh alone.
    """

    def formula(world: World) -> Tensor:
        log_s, log_t = world.student_logp(), world.teacher_logp()
        w = direction(world) * (reliability(world, clip=1.5) if reliable else 1.0)
        attract = w.clamp(min=0) * pull(log_s, log_t, alpha)
        even = alpha if 0 < alpha < 1 else 0.5
        repel = w.clamp(max=0) * jsd(log_s, log_t, even).clamp(max=cap)
        return surrogate(world) + 0.4 * (attract + repel)

    cfg = {"gap_clip": 1.5} if reliable else {"reliability": False}
    recipe = recipes.get(
        "dasd", form="full_vocab", beta=0.4, alpha=alpha, push_cap=cap, **DASD, **cfg
    )
    check(recipe, formula, make_world())


@pytest.mark.parametrize("form", ["advantage", "full_vocab"])
@pytest.mark.parametrize(("tau", "sign"), [(9.0, 1), (0.0, -1)])
@pytest.mark.parametrize("teacher_p", [0.9, 0.1])
def test_sure_tokens_go_to_the_teacher_and_unsure_ones_away(
    form: str, tau: float, sign: int, teacher_p: float
) -> None:
    """A coin at p = .5: a threshold above its entropy pulls it to the teacher, one below pushes."""
    recipe = recipes.get("dasd", form=form, verifier_weight=0.0)
    world = two_way_world(0.5, teacher_p, tau=tau, sigma=0.5, gap_scale=1.0)
    grad_VD = run_plain(recipe, world)[2]
    towards_teacher = 1 if teacher_p > 0.5 else -1
    assert (-grad_VD[0]).sign() == sign * towards_teacher


def test_the_gate_of_the_engine_and_thresholds_in_tokens_agree() -> None:
    world = make_world()
    recipe = recipes.get("dasd")
    tau, sigma = world.tokens["tau"], world.tokens["sigma"]
    gated = run_engine(
        recipe, world.without("tau", "sigma"), gate=gates.BoundGate("tanh", tau, sigma)
    )
    torch.testing.assert_close(gated, run_engine(recipe, world), rtol=0, atol=0)


def test_with_an_adaptive_gate_through_the_engine() -> None:
    world = make_world()
    H = entropy(world)
    tau = H.quantile(0.8)
    sigma = (H - H.mean()).abs().mean() + 1e-6
    expected = run_plain(recipes.get("dasd"), world.having(tau=tau + 0 * H, sigma=sigma + 0 * H))
    got = run_engine(
        recipes.get("dasd"), world.without("tau", "sigma"), gate=gates.DirectionAdaptive()
    )
    torch.testing.assert_close(got, expected)


def test_the_hard_gate_of_the_ablation() -> None:
    world = make_world()
    w = torch.where(entropy(world) <= 2.2, 1.0, -1.0)
    expected = run_plain(recipes.get("dasd"), world.without("tau", "sigma"), direction=w)
    got = run_engine(
        recipes.get("dasd"), world.without("tau", "sigma"), gate=gates.EntropySign(2.2)
    )
    torch.testing.assert_close(got, expected)


def test_the_teacher_moves_the_advantage_by_at_most_beta_times_the_clip() -> None:
    """On-policy the gradient for log S is minus the advantage: read it off there."""
    wild = make_world(sharpness=12.0).without("old_logp")
    recipe = recipes.get("dasd", beta=0.3, gap_clip=4.0, **DASD)
    logp = wild.at_y(wild.student_logp()).detach().requires_grad_()
    stats = {"logp": logp, "teacher_logp": wild.at_y(wild.teacher_logp()), "entropy": entropy(wild)}
    ones = wild.having(weight=torch.ones(12), gap_scale=torch.full((12,), 1e-6))
    loss = recipe.loss_fn(sd.TokenStats(stats), Tokens(ones.tokens)).sum()
    moved = -torch.autograd.grad(loss, logp)[0] - wild.tokens["adv"]
    assert moved.abs().max() > 0.5
    assert moved.abs().max() <= 0.3 * 4.0


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_a_push_never_gains_more_than_log_2(alpha: float) -> None:
    """Pushing on -KL would be rewarded without limit as the student leaves the teacher."""
    recipe = recipes.get(
        "dasd", form="full_vocab", beta=1.0, verifier_weight=0.0, alpha=alpha, **DASD
    )
    for student_p in (0.5, 1e-3, 1e-9, 1e-30):
        world = two_way_world(student_p, 1 - 1e-12, tau=0.0, sigma=1e-9, gap_scale=1.0)
        assert run_plain(recipe, world)[0].item() >= -math.log(2.0)


@pytest.mark.parametrize(("student_p", "teacher_p"), [(5e-5, 0.5), (0.5, 5e-5)])
def test_rare_tokens_are_pulled_but_not_pushed(student_p: float, teacher_p: float) -> None:
    recipe = recipes.get("dasd", verifier_weight=0.0)
    unguarded = recipes.get("dasd", verifier_weight=0.0, push_min_prob=0.0)
    for tau, guarded_moves in ((9.0, True), (-9.0, False)):
        world = two_way_world(student_p, teacher_p, tau=tau, sigma=1.0, gap_scale=1.0)
        assert bool(run_plain(unguarded, world)[2].any())
        assert bool(run_plain(recipe, world)[2].any()) == guarded_moves


@pytest.mark.parametrize(
    ("adv", "success", "pushed"), [(0.0, 0.0, False), (0.0, 1.0, True), (-0.7, 0.0, True)]
)
def test_groups_that_all_failed_need_not_be_pushed(
    adv: float, success: float, pushed: bool
) -> None:
    world = two_way_world(0.5, 0.9, tau=0.0, sigma=0.3, gap_scale=1.0, adv=adv, success=success)
    free, guarded = recipes.get("dasd"), recipes.get("dasd", push_all_fail=False)
    grpo = run_plain(recipes.get("grpo"), world)[2]
    assert not torch.equal(run_plain(free, world)[2], grpo)
    assert torch.equal(run_plain(guarded, world)[2], grpo) != pushed
    assert guarded.inputs == free.inputs | {"success"}


def test_a_token_of_sigma_0_has_no_direction() -> None:
    world = two_way_world(0.5, 0.9, tau=0.0, sigma=0.0, gap_scale=1.0)
    assert run_plain(recipes.get("dasd", verifier_weight=0.0), world)[0] == 0


def test_what_it_needs() -> None:
    dasd = recipes.get("dasd")
    assert dasd.needs == {"teacher", "rewards", "group", "old_logp", "gate"}
    assert dasd.inputs == {"weight", "adv", "gap_scale"}
    assert dasd.engine == {}
    distilled = recipes.get("dasd", form="full_vocab", verifier_weight=0)
    assert distilled.needs == {"teacher", "old_logp", "gate"}
    assert distilled.inputs == {"weight", "gap_scale"}
    assert distilled.engine == {"jsd_beta": 0.5}
    bare = recipes.get("dasd", form="full_vocab", verifier_weight=0, reliability=False)
    assert bare.inputs == {"weight"}
    assert recipes.get("dasd", form="full_vocab", alpha=0.3).engine == {"jsd_beta": 0.3}


def test_settings_of_the_other_form_are_refused() -> None:
    with pytest.raises(ValueError, match=r"push_cap=0.1 has no effect with form='advantage'"):
        recipes.get("dasd", push_cap=0.1)
    with pytest.raises(
        ValueError,
        match=r"gap_clip=2.0 has no effect with form='full_vocab' and reliability=False; leave it "
        r"out, or use it with form='advantage' or form='logit_level' or reliability=True",
    ):
        recipes.get("dasd", form="full_vocab", gap_clip=2.0, reliability=False)


def test_gate_missing() -> None:
    with pytest.raises(ValueError, match="gate="):
        run_engine(recipes.get("dasd"), make_world().without("tau", "sigma"))


def small(form: str) -> dict[str, Any]:
    """The form, with as many ids as the world has."""
    return {"form": form} | ({"topk": 5} if form == "logit_level" else {})


@pytest.mark.parametrize(("direction", "sign"), [("pull", 1.0), ("push", -1.0)])
@pytest.mark.parametrize("form", ["advantage", "full_vocab", "logit_level"])
def test_the_token_analysis_moves_all_tokens_alike(form: str, direction: str, sign: float) -> None:
    """Uniform pull and push: as with a gate that says the same everywhere, and without one."""
    world = make_world()
    extreme = world.having(
        tau=torch.full((12,), sign * 1e9, dtype=torch.float64), sigma=torch.ones(12)
    )
    cfg: dict[str, Any] = small(form) | {"push_min_prob": 0.0}
    uniform = recipes.get("dasd", direction=direction, **cfg)
    for ours, theirs in zip(
        run_engine(uniform, world.without("tau", "sigma")),
        run_engine(recipes.get("dasd", **cfg), extreme),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs)
    assert "gate" not in uniform.needs
    assert uniform.gates == ()


def logit_level(world: World, k: int) -> Tensor:
    """- w sum_v S(v) clip(gap(v) / scale) log S(v) over k ids and the rest, token by token."""
    s, t = world.student_logp().exp(), world.teacher_logp().exp()
    ids = s.detach().topk(k).indices
    s, t = s.gather(-1, ids), t.gather(-1, ids)
    s = torch.cat([s, 1 - s.sum(-1, keepdim=True)], -1)
    t = torch.cat([t, 1 - t.sum(-1, keepdim=True)], -1)
    scale = world.tokens["gap_scale"][:, None]
    g = ((t / s).log() / scale).clamp(-2.0, 2.0).detach()
    return -(s.detach() * g * s.log()).sum(-1)


@pytest.mark.parametrize("half", ["pull_low", "push_high"])
def test_half_of_the_gate(half: str) -> None:
    """Only what the gate pulls, only what it pushes; the rest is GRPO."""
    world = make_world()
    low = direction(world) > 0
    kept = low if half == "pull_low" else ~low

    def formula(world: World) -> Tensor:
        return surrogate(world.having(adv=torch.where(kept, advantage(world), world.tokens["adv"])))

    assert 0 < int(kept.sum()) < 12
    recipe = recipes.get("dasd", direction=half, **DASD)
    check(recipe, formula, world)
    assert recipe.gates == recipes.get("dasd").gates
    assert "gate" in recipe.needs


@pytest.mark.parametrize("k", [4, 22])
@pytest.mark.parametrize("reliable", [True, False])
def test_the_logit_level_form(k: int, reliable: bool) -> None:
    def formula(world: World) -> Tensor:
        factor = reliability(world, clip=2.0) if reliable else 1.0
        return surrogate(world) + 0.3 * factor * logit_level(world, k)

    recipe = recipes.get(
        "dasd",
        form="logit_level",
        topk=k,
        gap_clip=2.0,
        beta=0.3,
        direction="pull",
        reliability=reliable,
    )
    check(recipe, formula, make_world())
    assert recipe.inputs == {"weight", "adv", "gap_scale"}


def test_unclipped_the_logit_level_form_pulls_as_kl_student_teacher_does() -> None:
    """SDPO's proposition 2.1: its gradient is that of KL(S||T)."""
    recipe = recipes.get(
        "dasd",
        form="logit_level",
        topk=1,
        gap_clip=50.0,
        beta=1.0,
        direction="pull",
        reliability=False,
        verifier_weight=0,
    )
    world = two_way_world(0.3, 0.6, gap_scale=1.0)
    expected = run_plain(recipes.get("sdpo", alpha=1.0), two_way_world(0.3, 0.6))[2]
    torch.testing.assert_close(run_plain(recipe, world)[2], expected)


def test_no_push_above_the_entropy_ceiling() -> None:
    world = two_way_world(0.5, 0.9, adv=1.0, gap_scale=1.0)
    grpo = run_plain(recipes.get("grpo"), world)[2]
    for direction, strength, acts in (
        ("push", 0.0, False),
        ("push", 1.0, True),
        ("pull", 0.0, True),
    ):
        recipe = recipes.get("dasd", direction=direction, push_ceiling=1.5)
        hot = world.having(strength=torch.tensor([strength], dtype=torch.float64))
        assert torch.equal(run_plain(recipe, hot)[2], grpo) != acts
    assert recipes.get("dasd", push_ceiling=1.5).entropy_ceiling == 1.5
    assert recipes.get("dasd").entropy_ceiling is None


@pytest.mark.parametrize("form", ["advantage", "full_vocab", "logit_level"])
def test_where_the_teacher_saw_no_context_it_is_grpo(form: str) -> None:
    world = make_world()
    silent = world.having(signal=torch.zeros(12))
    recipe = recipes.get("dasd", **small(form))
    torch.testing.assert_close(run_plain(recipe, silent), run_plain(recipes.get("grpo"), world))
    assert recipe.anchored
    assert not recipes.get("dasd", form=form, verifier_weight=0).anchored


def test_the_direction_for_the_logs_is_the_guarded_one() -> None:
    recipe = recipes.get("dasd", push_min_prob=0.2)
    assert recipe.direction is not None
    for p, expected in ((0.1, 0.0), (0.5, -1.0)):
        world = two_way_world(p, 0.9, tau=0.0, sigma=1e-3)
        acted = recipe.direction(plain_stats(world, {}), Tokens(world.tokens))
        assert acted.item() == pytest.approx(expected)


def test_a_strength_is_the_ceilings_alone() -> None:
    world = make_world()
    cold = world.having(strength=torch.zeros(C, dtype=torch.float64))
    plain, ceiling = recipes.get("dasd"), recipes.get("dasd", push_ceiling=1.5)
    torch.testing.assert_close(run_engine(plain, cold), run_engine(plain, world))
    assert run_engine(ceiling, cold)[0] != run_engine(ceiling, world)[0]


def test_an_id_that_both_models_ban_has_no_gap() -> None:
    recipe = recipes.get("dasd", form="logit_level", topk=4)
    world = make_world()
    fields = dict(plain_stats(world, recipe.engine).items())
    for name in ("topk_logp", "teacher_topk_logp"):
        fields[name] = fields[name].detach().clone()
        fields[name][:, -1] = -math.inf
    loss_C = recipe.loss_fn(sd.TokenStats(fields), Tokens(world.tokens))
    assert loss_C.isfinite().all()


def test_a_token_without_direction_may_have_an_infinite_divergence() -> None:
    recipe = recipes.get("dasd", form="full_vocab")
    world = make_world().having(signal=torch.zeros(C))
    fields = dict(plain_stats(world, recipe.engine).items())
    fields["kl_teacher_student"] = torch.full((C,), math.inf, dtype=torch.float64)
    loss_C = recipe.loss_fn(sd.TokenStats(fields), Tokens(world.tokens))
    assert loss_C.isfinite().all()
