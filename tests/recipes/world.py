"""A small world in float64 in which every recipe is computed twice: by itself and from its formula.

`check` compares a recipe with an independent formula over materialised logits, in value and in
gradient, once on statistics built here from those logits and once through the engine.
Shape letters: C tokens, V vocabulary, D hidden, K ids.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

import sdkernels as sd
from sdkernels.engine.stats import Tokens
from sdkernels.recipes import Recipe

C, V, D = 12, 23, 6


@dataclass
class World:
    """Student and teacher over one batch of tokens, and the per-token inputs."""

    hidden_CD: Tensor
    weight_VD: Tensor
    teacher_CV: Tensor
    y_C: Tensor
    tokens: dict[str, Tensor] = field(default_factory=dict)

    def logits_CV(self) -> Tensor:
        return self.hidden_CD @ self.weight_VD.T

    def student_logp(self, temperature: float = 1.0) -> Tensor:
        """log S, [C, V]."""
        return (self.logits_CV() / temperature).log_softmax(-1)

    def teacher_logp(self, temperature: float = 1.0) -> Tensor:
        """log T, [C, V]."""
        return (self.teacher_CV / temperature).log_softmax(-1)

    def at_y(self, logp_CV: Tensor) -> Tensor:
        return logp_CV.gather(-1, self.y_C[:, None]).squeeze(-1)

    def without(self, *names: str) -> World:
        kept = {name: tensor for name, tensor in self.tokens.items() if name not in names}
        return World(self.hidden_CD, self.weight_VD, self.teacher_CV, self.y_C, kept)

    def having(self, **tokens: Tensor) -> World:
        everything = {**self.tokens, **tokens}
        return World(self.hidden_CD, self.weight_VD, self.teacher_CV, self.y_C, everything)


Formula = Callable[[World], Tensor]


def make_world(*, sharpness: float = 1.5, seed: int = 0) -> World:
    """Off-policy by up to about a nat, advantages of both signs, some tokens of weight 0."""
    random = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    hidden_CD, weight_VD = normal(C, D), sharpness / math.sqrt(D) * normal(V, D)
    teacher_CV = sharpness * normal(C, V)
    y_C = torch.randint(0, V, (C,), generator=random)
    world = World(hidden_CD.requires_grad_(), weight_VD.requires_grad_(), teacher_CV, y_C)
    adv_C = normal(C)
    adv_C[3] = 0.0
    weight_C = torch.rand(C, generator=random, dtype=torch.float64) + 0.1
    weight_C[5] = 0.0
    world.tokens = {
        "weight": weight_C,
        "adv": adv_C,
        "old_logp": world.at_y(world.student_logp()).detach() + 0.6 * normal(C),
        "success": torch.tensor([1, 1, 0, 0] * (C // 4)),
        "gap_scale": torch.full((C,), 0.9, dtype=torch.float64),
        "tau": torch.full((C,), 2.2, dtype=torch.float64),
        "sigma": torch.full((C,), 0.4, dtype=torch.float64),
        "second_teacher_logp": world.at_y((sharpness * normal(C, V)).log_softmax(-1)),
    }
    # Two tokens whose sequence has no second teacher: said outright, and as log of an empty mean.
    world.tokens["second_teacher_logp"][7] = math.nan
    world.tokens["second_teacher_logp"][8] = -math.inf
    return world


def teacher_is_student(world: World) -> World:
    """Step 0 of self-distillation without context: the teacher's logits are the student's."""
    logits_CV = world.logits_CV().detach()
    return World(world.hidden_CD, world.weight_VD, logits_CV, world.y_C, world.tokens)


def two_way_world(student_p: float, teacher_p: float, *, y: int = 0, **tokens: float) -> World:
    """One token, two vocabulary entries: S = (p, 1 - p), T = (q, 1 - q), for numbers by hand."""
    student = torch.tensor([student_p, 1 - student_p], dtype=torch.float64).log()
    teacher = torch.tensor([[teacher_p, 1 - teacher_p]], dtype=torch.float64).log()
    one = torch.ones(1, 1, dtype=torch.float64).requires_grad_()
    columns = {name: torch.tensor([value], dtype=torch.float64) for name, value in tokens.items()}
    columns.setdefault("weight", torch.ones(1, dtype=torch.float64))
    return World(one, student[:, None].requires_grad_(), teacher, torch.tensor([y]), columns)


def surrogate(
    world: World, low: float = 0.2, high: float = 0.28, dual: float | None = 3.0
) -> Tensor:
    """GRPO's clipped surrogate `[C]`, case by case and token by token, as in the papers."""
    adv, logp = world.tokens["adv"], world.at_y(world.student_logp())
    old = world.tokens.get("old_logp", logp.detach())
    losses = []
    for a, ratio in zip(adv, (logp - old).exp(), strict=True):
        if a >= 0:
            losses.append(-a * (ratio if ratio < 1 + high else ratio.detach() * 0 + 1 + high))
        else:
            kept = ratio if ratio > 1 - low else ratio.detach() * 0 + 1 - low
            if dual is not None and kept > dual:
                kept = kept.detach() * 0 + dual
            losses.append(-a * kept)
    return torch.stack(losses)


def plain_stats(world: World, engine: dict[str, Any]) -> sd.TokenStats:
    """The statistics that `engine` asks for, from materialised logits by plain autograd."""
    temperature = engine.get("temperature", 1.0)
    log_s = world.student_logp(temperature)
    log_t = world.teacher_logp(engine.get("teacher_temperature", temperature))
    s, t = log_s.exp(), log_t.exp()
    fields = {
        "logp": world.at_y(log_s),
        "teacher_logp": world.at_y(log_t),
        "entropy": -(s * log_s).sum(-1),
        "teacher_entropy": -(t * log_t).sum(-1),
        "kl_teacher_student": (t * (log_t - log_s)).sum(-1),
        "kl_student_teacher": (s * (log_s - log_t)).sum(-1),
    }
    if "jsd_beta" in engine:
        b = engine["jsd_beta"]
        log_m = (b * t + (1 - b) * s).log()
        fields["jsd"] = (b * t * (log_t - log_m) + (1 - b) * s * (log_s - log_m)).sum(-1)
    if "entry_clip" in engine:
        entries = (t * (log_t - log_s)).clamp(max=engine["entry_clip"])
        fields["clipped_kl_teacher_student"] = entries.sum(-1)
    if "topk" in engine:
        ranked = log_s if engine["topk_of"] == "student" else log_t
        ids = ranked.topk(engine["topk"], dim=-1).indices
        fields["topk_ids"] = ids
        fields["topk_logp"] = log_s.gather(-1, ids)
        fields["teacher_topk_logp"] = log_t.gather(-1, ids)
    return sd.TokenStats(fields)


def run_plain(recipe: Recipe, world: World, **extra: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Loss and gradients for hidden states and weight, on plain statistics."""
    fields = dict(plain_stats(world, recipe.engine).items()) | extra
    loss_C = recipe.loss_fn(sd.TokenStats(fields), Tokens(world.tokens))
    return _with_gradients(loss_C.sum(), world)


def run_engine(recipe: Recipe, world: World, **keywords: Any) -> tuple[Tensor, Tensor, Tensor]:
    """The same through `token_loss`."""
    loss, _ = sd.token_loss(
        world.hidden_CD,
        world.weight_VD,
        recipe.loss_fn,
        targets=world.y_C,
        teacher=sd.LogitsTeacher(world.teacher_CV),
        tokens=world.tokens,
        **recipe.engine,
        **keywords,
    )
    return _with_gradients(loss, world)


def run_formula(formula: Formula, world: World) -> tuple[Tensor, Tensor, Tensor]:
    """The same from the formula, weighted here."""
    return _with_gradients((world.tokens["weight"] * formula(world)).sum(), world)


def check(recipe: Recipe, formula: Formula, world: World) -> None:
    """Plain statistics, engine and formula agree to rounding, and the formula says something."""
    expected = run_formula(formula, world)
    assert all(bool(part.abs().max() > 1e-6) for part in expected), "the world is too tame"
    torch.testing.assert_close(run_plain(recipe, world), expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(run_engine(recipe, world), expected, rtol=1e-10, atol=1e-12)


def _with_gradients(loss: Tensor, world: World) -> tuple[Tensor, Tensor, Tensor]:
    hidden, weight = torch.autograd.grad(loss, [world.hidden_CD, world.weight_VD])
    return loss.detach(), hidden, weight
