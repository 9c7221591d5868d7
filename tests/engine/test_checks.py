"""What a loss function may not do, and what the message says about it."""

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import sdkernels as sd
from sdkernels.testing import assert_exact

LossFn = Callable[[Any, Any], Any]
T, D, V = 10, 4, 9


def loss_of(loss_fn: LossFn, *, T: int = T, **keywords: Any) -> tuple[Tensor, sd.TokenStats]:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(T, D, generator=generator, requires_grad=True)
    weight = torch.randn(V, D, generator=generator, requires_grad=True)
    keywords = {"teacher": sd.LogitsTeacher(torch.randn(T, V, generator=generator)), **keywords}
    return sd.token_loss(hidden, weight, loss_fn, **keywords)


# --- shape and type -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("loss_fn", "error", "message"),
    [
        (lambda s, tok: 0.0, TypeError, "expected a tensor [C], one loss per token, got float"),
        (lambda s, tok: None, TypeError, "expected a tensor [C], one loss per token, got NoneType"),
        (lambda s, tok: s.entropy.sum(), ValueError, "expected shape [10] (one loss per token of"),
        (lambda s, tok: s.entropy.mean(), ValueError, "got []; do not reduce: the sum over tokens"),
        (lambda s, tok: s.entropy[:, None], ValueError, "expected shape [10]"),
        (lambda s, tok: s.entropy[1:], ValueError, "got [9]"),
        (lambda s, tok: s.topk_ids[:, 0], TypeError, "expected a floating dtype, got torch.int64"),
    ],
)
def test_wrong_return_value(loss_fn: LossFn, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        loss_of(loss_fn, topk=2)


def test_a_loss_that_ignores_all_statistics_has_zero_gradient() -> None:
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(T, D, generator=generator, requires_grad=True)
    weight = torch.randn(V, D, generator=generator, requires_grad=True)
    loss, _ = sd.token_loss(hidden, weight, lambda s, tok: torch.full_like(s.lse, 0.5).detach())
    assert loss.item() == 0.5 * T
    loss.backward()
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))
    assert torch.equal(weight.grad, torch.zeros_like(weight))


# --- statistics and tokens that don't exist -------------------------------------------------------


@pytest.mark.parametrize(
    ("loss_fn", "message"),
    [
        (lambda s, tok: s.entrpy, "unknown statistic 'entrpy'; did you mean 'entropy'?"),
        (lambda s, tok: s.kl_student_techer, "did you mean 'kl_student_teacher'?"),
        (lambda s, tok: s.whatever, "unknown statistic 'whatever'. Known: logp, entropy"),
        (lambda s, tok: s.logp, "'logp' was not computed: pass targets= (computed here: entropy"),
        (lambda s, tok: s.jsd, "'jsd' was not computed: pass teacher= and jsd_beta="),
        (lambda s, tok: s.clipped_kl_teacher_student, "pass teacher= and entry_clip="),
        (lambda s, tok: s.topk_logp, "pass topk= or a TopKTeacher"),
        (lambda s, tok: s.direction, "pass gate="),
        (lambda s, tok: tok.adv, "reads tok.adv, but tokens= has old: add tokens={'adv': ...}"),
    ],
)
def test_missing_names(loss_fn: LossFn, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        loss_of(loss_fn, tokens={"old": torch.zeros(T)})


# --- token by token -------------------------------------------------------------------------------

MIXING: dict[str, LossFn] = {
    "centred": lambda s, tok: s.entropy - s.entropy.mean(),
    "detached_baseline": lambda s, tok: s.entropy * (tok.x - tok.x.mean()),
    "normalised": lambda s, tok: s.entropy / s.entropy.max().detach(),
    "divided_by_length": lambda s, tok: s.entropy / s.entropy.shape[0],
    "quantile": lambda s, tok: s.entropy * (s.entropy > s.entropy.median()),
    "cumulative": lambda s, tok: s.entropy.cumsum(0),
    "shifted": lambda s, tok: s.entropy.roll(1),
    "softmax": lambda s, tok: s.entropy * tok.x.softmax(0),
    "by_position": lambda s, tok: s.entropy * (1 + torch.arange(len(s.entropy)) % 3),
}


@pytest.mark.parametrize("tokens", [2, 3, 10, 63, 64, 65, 400])
@pytest.mark.parametrize("name", MIXING)
def test_mixing_tokens_is_noticed(name: str, tokens: int) -> None:
    x = torch.linspace(-1, 2, tokens).square()
    with pytest.raises(ValueError, match="depends on the other tokens of its chunk"):
        loss_of(MIXING[name], T=tokens, tokens={"x": x})


@pytest.mark.parametrize("tokens", [3, 5, 13, 40, 100])
def test_a_quantile_of_few_tokens_is_noticed_whatever_they_are(tokens: int) -> None:
    """Both halves of a small chunk often have the same tokens above their quantiles."""

    def above_quantile(s: sd.TokenStats, tok: Any) -> torch.Tensor:
        return s.logp * (s.entropy > s.entropy.quantile(0.8))

    for seed in range(20):
        generator = torch.Generator().manual_seed(seed)
        hidden = torch.randn(tokens, 8, generator=generator)
        weight = torch.randn(50, 8, generator=generator)
        ids = torch.randint(50, (tokens,), generator=generator)
        with pytest.raises(ValueError, match="depends on the other tokens of its chunk"):
            sd.token_loss(hidden, weight, above_quantile, targets=ids)


@pytest.mark.parametrize("name", sorted(set(MIXING) - {"shifted", "cumulative", "by_position"}))
def test_mixing_tokens_is_noticed_where_a_chunk_is_one_token(name: str) -> None:
    """Alone, a token is its own mean; the next run with a larger budget would not agree."""
    with pytest.raises(ValueError, match="depends on the other tokens of its chunk"):
        loss_of(MIXING[name], tokens={"x": torch.linspace(1, 2, T)}, chunk_bytes=1)


@pytest.mark.parametrize("weight", [1e-9, 1e9])
def test_mixing_tokens_is_noticed_at_any_weight(weight: float) -> None:
    """Normalised weights make losses of 1e-6 and less, far below any absolute tolerance."""
    with pytest.raises(ValueError, match="depends on the other tokens of its chunk"):
        loss_of(lambda s, tok: weight * (s.entropy - s.entropy.mean()))


HONEST: dict[str, LossFn] = {
    # All rounding noise: exp(x) - 1 - x for x of 1e-7, where vector and scalar code differ by
    # as much as the value itself.
    "cancelling": lambda s, tok: (tok.noise.exp() - 1 - tok.noise) * 1e6 + 0 * s.entropy,
    "ratio_minus_one": lambda s, tok: ((s.lse * 0 + tok.noise).exp() - 1) / 1e-7,
    "transcendental": lambda s, tok: (s.entropy.tanh() * s.lse.sigmoid()).log1p() ** 1.3,
    "columns": lambda s, tok: (s.topk_logp.exp() * tok.wide).sum(-1) + s.topk_logp.logsumexp(-1),
    "branches": lambda s, tok: torch.where(tok.noise > 0, s.entropy, -s.lse),
}


@pytest.mark.parametrize("tokens", [1, 2, 3, 10, 63, 64, 65, 400, 5000])
@pytest.mark.parametrize("name", HONEST)
def test_acting_token_by_token_is_accepted(name: str, tokens: int) -> None:
    noise = 1e-7 * torch.randn(tokens, generator=torch.Generator().manual_seed(1))
    wide = torch.randn(tokens, 7, generator=torch.Generator().manual_seed(2))
    loss_of(HONEST[name], T=tokens, topk=7, tokens={"noise": noise, "wide": wide})


def test_the_check_covers_views_of_tokens() -> None:
    """Strided and expanded tokens take other code paths than contiguous copies of them."""
    noise = (1e-7 * torch.randn(200, generator=torch.Generator().manual_seed(1)))[::2]
    everywhere = torch.tensor(1e-7).expand(100)
    loss_of(
        lambda s, tok: (tok.a.exp() - 1) * 1e7 + (tok.b.exp() - 1) * 1e7 + 0 * s.entropy,
        T=100,
        tokens={"a": noise, "b": everywhere},
    )


# --- finite ---------------------------------------------------------------------------------------


def test_infinite_statistic_is_named_with_its_token() -> None:
    logits = torch.zeros(2, 5, V)
    hidden, weight = torch.randn(2, 5, D), torch.randn(V, D)
    bias = torch.zeros(V).index_fill(0, torch.tensor([3]), -torch.inf)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[0] = False
    mask[1, 0] = False
    with pytest.raises(ValueError, match=re.escape("token [1, 1] is inf; statistics of it that")):
        sd.token_loss(
            hidden,
            sd.LMHead(weight, bias),
            lambda s, tok: s.kl_teacher_student,
            teacher=sd.LogitsTeacher(logits),
            mask=mask,
        )
    with pytest.raises(ValueError, match="not finite: kl_teacher_student"):
        sd.token_loss(
            hidden,
            sd.LMHead(weight, bias),
            lambda s, tok: s.kl_teacher_student,
            teacher=sd.LogitsTeacher(logits),
        )


def test_a_loss_that_is_not_finite_by_itself_says_so() -> None:
    x = torch.ones(T)
    x[7] = 0.0
    with pytest.raises(ValueError, match=r"token \[7\] is inf.*none, so it arises in loss_fn or"):
        loss_of(lambda s, tok: s.entropy / tok.x, tokens={"x": x})


def test_a_derivative_that_is_not_finite_names_token_and_statistic() -> None:
    with pytest.raises(ValueError, match=r"by s\.kl_student_teacher is not finite, though the los"):
        loss_of(lambda s, tok: (s.kl_student_teacher - s.kl_student_teacher.detach()).sqrt())


def test_infinite_statistics_that_the_loss_leaves_out_do_no_harm() -> None:
    """KL(S||T) is infinite where the teacher bans; a token that is left out must send nothing."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(4, D, generator=generator).double().requires_grad_()
    weight = torch.randn(V, D, generator=generator).double().requires_grad_()
    logits = torch.randn(4, V, generator=generator).double()
    logits[1, 3] = -torch.inf
    use = torch.tensor([True, False, True, True])

    def loss_fn(s: Any, tok: Any) -> Tensor:
        return torch.where(tok.use, s.kl_student_teacher, 0.0)

    loss, stats = sd.token_loss(
        hidden, weight, loss_fn, teacher=sd.LogitsTeacher(logits), tokens={"use": use}
    )
    assert stats.kl_student_teacher[1] == torch.inf
    got = torch.autograd.grad(loss, [hidden, weight])
    alone, _ = sd.token_loss(
        hidden,
        weight,
        lambda s, tok: s.kl_student_teacher,
        teacher=sd.LogitsTeacher(logits),
        mask=use,
    )
    for a, b in zip(got, torch.autograd.grad(alone, [hidden, weight]), strict=True):
        assert_exact(a, b)


# --- writing in place, and tensors from outside ---------------------------------------------------


def test_changing_a_statistic_in_place_is_refused() -> None:
    """`detach()` shares memory with what the gradient pass still reads."""

    def loss_fn(s: Any, tok: Any) -> Tensor:
        weight = s.entropy.detach()
        weight *= 2.0
        return weight * s.kl_teacher_student

    with pytest.raises(ValueError, match=re.escape("s.entropy was changed in place")):
        loss_of(loss_fn)


def test_changing_tokens_in_place_is_refused() -> None:
    with pytest.raises(ValueError, match=re.escape("tok.adv was changed in place")):
        loss_of(lambda s, tok: tok.adv.mul_(2.0) * s.entropy, tokens={"adv": torch.ones(T)})


def test_a_trainable_parameter_from_outside_is_refused() -> None:
    """It would silently get no gradient."""
    log_alpha = torch.zeros((), requires_grad=True)

    def loss_fn(s: Any, tok: Any) -> Tensor:
        return s.entropy * log_alpha.exp()

    with pytest.raises(ValueError, match=re.escape("a tensor of shape [] that requires grad and")):
        loss_of(loss_fn)
    with torch.no_grad():
        loss_of(loss_fn)
    loss_of(lambda s, tok: s.entropy * log_alpha.detach().exp())


def test_the_output_of_another_model_from_outside_is_refused() -> None:
    critic = torch.nn.Linear(3, 1)
    values = critic(torch.randn(T, 3)).squeeze(-1)
    with pytest.raises(ValueError, match="requires grad and comes from outside"):
        loss_of(lambda s, tok: s.entropy * values[: len(s.entropy)])


def test_closures_over_constants_are_welcome() -> None:
    beta = torch.tensor(0.3)
    loss, stats = loss_of(lambda s, tok: beta * s.entropy)
    assert_exact(loss.detach(), (beta * stats.entropy).sum(), rtol=1e-6)


@pytest.mark.parametrize("name", ["slice", "items", "map", "values"])
def test_any_name_may_be_a_token(name: str) -> None:
    x = torch.linspace(0, 1, T)
    loss, stats = loss_of(lambda s, tok: getattr(tok, name) * s.entropy, tokens={name: x})
    assert_exact(loss.detach(), (x * stats.entropy).sum(), rtol=1e-6)
