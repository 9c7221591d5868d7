"""The engine's answers by plain autograd over materialised logits, and the problems to ask both.

Nothing here uses `sdkernels.engine` or `sdkernels.rows` to compute: logits are written out, every
statistic is its textbook formula, gradients are autograd's. Run in float64 it is the exact answer,
in a lower precision what plain torch would have given.

Shape letters: T tokens (any leading shape), D hidden, V vocabulary, K ids a token, B buckets.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

import sdkernels as sd
from sdkernels.testing import assert_exact

LossFn = Callable[[Any, Any], Tensor]

# Statistics that carry a gradient, and those that don't.
DIFFERENTIABLE = (
    "logp",
    "entropy",
    "lse",
    "kl_teacher_student",
    "kl_student_teacher",
    "jsd",
    "clipped_kl_teacher_student",
    "topk_logp",
)


@dataclass
class Problem:
    """One problem: what `token_loss` is given, and enough to compute it the long way."""

    hidden: Tensor
    weight: Tensor
    bias: Tensor | None = None
    scale: float = 1.0
    softcap: float | None = None
    valid_vocab: int | None = None
    temperature: float = 1.0
    teacher_temperature: float | None = None
    teacher_hidden: Tensor | None = None
    teacher_weight: Tensor | None = None
    teacher_bias: Tensor | None = None
    teacher_logits: Tensor | None = None
    teacher_ids: Tensor | None = None
    teacher_logprobs: Tensor | None = None
    tail: bool = True
    targets: Tensor | None = None
    mask: Tensor | None = None
    jsd_beta: float | None = None
    entry_clip: float | None = None
    topk: int | None = None
    topk_of: str = "student"
    tokens: dict[str, Tensor] = field(default_factory=dict)

    # --- how the engine is asked ------------------------------------------------------------------

    def head(self) -> sd.LMHead:
        return sd.LMHead(
            self.weight,
            self.bias,
            scale=self.scale,
            softcap=self.softcap,
            valid_vocab=self.valid_vocab,
        )

    def teacher(self) -> Any:
        if self.teacher_hidden is not None:
            head = sd.LMHead(
                self.teacher_weight,
                self.teacher_bias,
                scale=self.scale,
                softcap=self.softcap,
                valid_vocab=self.valid_vocab,
            )
            return sd.HiddenTeacher(self.teacher_hidden, head)
        if self.teacher_logits is not None:
            return sd.LogitsTeacher(self.teacher_logits, valid_vocab=self.valid_vocab)
        if self.teacher_ids is not None:
            return sd.TopKTeacher(self.teacher_ids, self.teacher_logprobs, tail=self.tail)
        return None

    def keywords(self) -> dict[str, Any]:
        return {
            "targets": self.targets,
            "teacher": self.teacher(),
            "mask": self.mask,
            "temperature": self.temperature,
            "teacher_temperature": self.teacher_temperature,
            "jsd_beta": self.jsd_beta,
            "entry_clip": self.entry_clip,
            "topk": self.topk,
            "topk_of": self.topk_of,
        }

    def engine_loss(self, loss_fn: LossFn, **more: Any) -> tuple[Tensor, sd.TokenStats]:
        keywords = {**self.keywords(), "tokens": self.tokens, **more}
        return sd.token_loss(self.hidden, self.head(), loss_fn, **keywords)

    def engine_stats(self, **more: Any) -> sd.TokenStats:
        return sd.token_stats(self.hidden, self.head(), **{**self.keywords(), **more})

    # --- the long way -----------------------------------------------------------------------------

    def student_logits(self) -> Tensor:
        return self._transformed(self.hidden, self.weight, self.bias, self.temperature)

    def reference_stats(self) -> SimpleNamespace:
        """Every statistic `[*lead]`, by its formula, differentiable by autograd."""
        s = self.student_logits().log_softmax(-1)
        stats = SimpleNamespace(entropy=-_expect(s, s), lse=self.student_logits().logsumexp(-1))
        many_ids = self.targets is not None and self.targets.dim() == self.hidden.dim()
        if self.targets is not None:
            stats.logp = _at(s, self.targets, many_ids)
        t = self._teacher_logp()
        if t is not None:
            stats.teacher_entropy = -_expect(t, t)
            stats.teacher_lse = self._teacher_logits().logsumexp(-1)
            if self.targets is not None:
                stats.teacher_logp = _at(t, self.targets, many_ids)
            _divergences(stats, s, t, self.jsd_beta, self.entry_clip)
        ids = self.teacher_ids
        if self.topk is not None:
            ids = (t if self.topk_of == "teacher" else s).topk(self.topk, dim=-1).indices
        if ids is not None:
            stats.topk_ids, stats.topk_logp = ids, s.gather(-1, ids)
            if t is not None:
                stats.teacher_topk_logp = t.gather(-1, ids)
        if self.teacher_ids is not None:
            stats.teacher_topk_logp = self.teacher_logprobs.to(s.dtype)
            s_B = _buckets(s, ids, self.tail)
            t_B = _listed_buckets(self.teacher_logprobs.to(s.dtype), self.tail)
            _divergences(stats, s_B, t_B, self.jsd_beta, self.entry_clip)
        return stats

    def reference_loss(self, loss_fn: LossFn) -> Tensor:
        """Sum of `loss_fn` over the tokens that the mask leaves, flattened."""
        lead = self.hidden.shape[:-1]
        mask = torch.ones(lead, dtype=torch.bool) if self.mask is None else self.mask
        fields = vars(self.reference_stats())
        s = SimpleNamespace(**{name: value[mask] for name, value in fields.items()})
        tok = SimpleNamespace(**{name: value[mask] for name, value in self.tokens.items()})
        return loss_fn(s, tok).sum()

    def _transformed(
        self, hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float
    ) -> Tensor:
        z = hidden @ weight.t()
        if bias is not None:
            z = z + bias
        z = z * self.scale
        if self.softcap is not None:
            z = self.softcap * torch.tanh(z / self.softcap)
        return z[..., : self.valid_vocab] / temperature

    def _teacher_logits(self) -> Tensor | None:
        temperature = self.teacher_temperature or self.temperature
        if self.teacher_hidden is not None:
            return self._transformed(
                self.teacher_hidden, self.teacher_weight, self.teacher_bias, temperature
            ).detach()
        if self.teacher_logits is not None:
            return self.teacher_logits[..., : self.valid_vocab] / temperature
        return None

    def _teacher_logp(self) -> Tensor | None:
        logits = self._teacher_logits()
        return None if logits is None else logits.log_softmax(-1)

    # --- both -------------------------------------------------------------------------------------

    def leaves(self) -> dict[str, Tensor]:
        """The tensors whose gradients are compared."""
        named = {"hidden": self.hidden, "weight": self.weight, "bias": self.bias}
        return {k: v for k, v in named.items() if v is not None and v.requires_grad}

    def to(self, dtype: torch.dtype) -> Problem:
        """The same numbers in another dtype, as fresh leaves that require grad as these do."""

        def change(value: Any) -> Any:
            if isinstance(value, Tensor) and value.is_floating_point():
                return value.detach().to(dtype).requires_grad_(value.requires_grad)
            return value

        fields = {name: change(value) for name, value in vars(self).items() if name != "tokens"}
        tokens = {name: change(value) for name, value in self.tokens.items()}
        return Problem(**fields, tokens=tokens)

    def with_(self, **changes: Any) -> Problem:
        """A copy with some fields replaced, its leaves fresh."""
        return replace(self.to(self.hidden.dtype), **changes)


def assert_loss_exact(
    problem: Problem, loss_fn: LossFn, *, rtol: float = 1e-12, **more: Any
) -> None:
    """`token_loss` agrees with the oracle in value, in every gradient and in every statistic."""
    names, leaves = list(problem.leaves()), list(problem.leaves().values())
    expected = problem.reference_loss(loss_fn)
    expected_grads = torch.autograd.grad(expected, leaves) if leaves else ()
    loss, stats = problem.engine_loss(loss_fn, **more)
    assert_exact(loss.detach(), expected.detach(), rtol=rtol, name="loss")
    grads = torch.autograd.grad(loss, leaves) if leaves else ()
    for name, grad, reference in zip(names, grads, expected_grads, strict=True):
        assert_exact(grad, reference, rtol=rtol, name=f"gradient of {name}")
    assert_stats_exact(problem, stats, rtol=rtol)


def assert_stats_exact(problem: Problem, stats: sd.TokenStats, *, rtol: float = 1e-12) -> None:
    """Every statistic agrees with the oracle where the mask is True, and is 0 elsewhere."""
    lead = problem.hidden.shape[:-1]
    mask = torch.ones(lead, dtype=torch.bool) if problem.mask is None else problem.mask
    for name, value in vars(problem.reference_stats()).items():
        got = stats[name].detach()
        assert got.shape == value.shape, name
        assert not got[~mask].any(), f"{name} is not 0 where the mask is False"
        if name == "topk_ids":
            assert torch.equal(got[mask], value[mask])
        else:
            assert_exact(got[mask], value.detach()[mask], rtol=rtol, name=name)


def upstream_grads(
    outputs: list[Tensor], upstream: list[Tensor | None], leaves: list[Tensor]
) -> tuple[Tensor, ...]:
    """Gradients of several outputs at once; None leaves an output out of the graph's use."""
    used = [(o, u) for o, u in zip(outputs, upstream, strict=True) if u is not None]
    return torch.autograd.grad([o for o, _ in used], leaves, [u for _, u in used])


# --- formulas -------------------------------------------------------------------------------------


def _expect(logp: Tensor, value: Tensor) -> Tensor:
    """sum_v p value with 0 * anything = 0, safe for autograd."""
    has_mass = logp > -torch.inf
    return (
        (torch.where(has_mass, logp, 0.0).exp() * torch.where(has_mass, value, 0.0))
        .masked_fill(~has_mass, 0.0)
        .sum(-1)
    )


def _at(logp: Tensor, ids: Tensor, many: bool) -> Tensor:
    ids = ids.long()
    return logp.gather(-1, ids) if many else logp.gather(-1, ids[..., None]).squeeze(-1)


def _divergences(
    stats: SimpleNamespace, s: Tensor, t: Tensor, jsd_beta: float | None, entry_clip: float | None
) -> None:
    stats.kl_teacher_student = _expect(t, t - s)
    stats.kl_student_teacher = _expect(s, s - t)
    if jsd_beta is not None:
        # Where neither has mass m is never read; anything finite keeps autograd from NaN there.
        nobody = (s == -torch.inf) & (t == -torch.inf)
        m = torch.logaddexp(
            t.masked_fill(nobody, 0.0) + math.log(jsd_beta),
            s.masked_fill(nobody, 0.0) + math.log1p(-jsd_beta),
        )
        stats.jsd = jsd_beta * _expect(t, t - m) + (1 - jsd_beta) * _expect(s, s - m)
    if entry_clip is not None:
        entries = torch.where(t > -torch.inf, t.exp() * (t - s), 0.0)
        stats.clipped_kl_teacher_student = entries.clamp(max=entry_clip).sum(-1)


def _buckets(logp: Tensor, ids: Tensor, tail: bool) -> Tensor:
    """The ids, and what is left summed entry by entry rather than as 1 - sum."""
    listed = logp.gather(-1, ids)
    if not tail:
        return listed.log_softmax(-1)
    rest = logp.scatter(-1, ids, -torch.inf).logsumexp(-1, keepdim=True)
    return torch.cat([listed, rest], dim=-1)


def _listed_buckets(logprobs: Tensor, tail: bool) -> Tensor:
    if not tail:
        return logprobs.log_softmax(-1)
    return torch.cat([logprobs, (1 - logprobs.exp().sum(-1, keepdim=True)).log()], dim=-1)


# --- problems and losses --------------------------------------------------------------------------


def make_problem(
    lead: tuple[int, ...] = (5, 4),
    *,
    D: int = 6,
    V: int = 23,
    teacher: str | None = "hidden",
    teacher_D: int = 4,
    ids: int | None = None,
    bias: bool = True,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    **settings: Any,
) -> Problem:
    """A random problem; hidden, weight and bias require grad, logits have a spread of about 1.5.

    `teacher` is "hidden", "logits", "topk" (5 ids) or None; `ids` is None for one target a token.
    """
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    def integers(*shape: int) -> Tensor:
        return torch.randint(settings.get("valid_vocab") or V, shape, generator=generator)

    fields: dict[str, Any] = {
        "hidden": normal(*lead, D).requires_grad_(),
        "weight": (1.5 * normal(V, D) / D**0.5).requires_grad_(),
        "bias": normal(V).mul_(0.5).requires_grad_() if bias else None,
        "targets": integers(*lead) if ids is None else integers(*lead, ids),
    }
    if teacher == "hidden":
        fields["teacher_hidden"] = normal(*lead, teacher_D)
        fields["teacher_weight"] = 1.5 * normal(V, teacher_D) / teacher_D**0.5
        fields["teacher_bias"] = 0.5 * normal(V) if bias else None
    elif teacher == "logits":
        fields["teacher_logits"] = 1.5 * normal(*lead, V)
    elif teacher == "topk":
        valid = settings.get("valid_vocab") or V
        served = (2 * normal(*lead, valid)).double().log_softmax(-1).topk(min(5, valid), dim=-1)
        fields["teacher_ids"], fields["teacher_logprobs"] = served.indices, served.values.to(dtype)
    if teacher is not None:
        fields |= {"jsd_beta": 0.3, "entry_clip": 0.05}
    if teacher != "topk":
        fields |= {"topk": 3}
    fields["tokens"] = {
        "w": normal(*lead, len(DIFFERENTIABLE)),
        "q": normal(*lead),
        "ids": normal(*lead, max(ids or 1, 5, settings.get("topk") or 0)),
    }
    return Problem(**{**fields, **settings})


def everything_loss(s: Any, tok: Any) -> Tensor:
    """Mixes every statistic that there is, with random signed weights and products between them."""
    total = tok.q * s.entropy * s.lse
    for index, name in enumerate(DIFFERENTIABLE):
        if not hasattr(s, name):
            continue
        value = getattr(s, name)
        if value.dim() == 2:
            columns = tok.ids[:, : value.shape[1]]
            value = (columns * value).sum(-1) + 0.1 * value.exp().square().sum(-1)
        total = total + tok.w[:, index] * value + 0.3 * tok.q * value.square()
    if hasattr(s, "teacher_entropy"):
        total = total + tok.w[:, 0] * s.entropy * s.teacher_entropy
    if hasattr(s, "kl_teacher_student"):
        total = total + tok.q * s.kl_teacher_student * (s.lse - s.entropy)
    return total
