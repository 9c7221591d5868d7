"""What a caller's loss function must be: one finite loss a token, from that token's numbers alone.

Shape letter: C tokens of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdkernels.engine.problem import Problem
from sdkernels.engine.stats import Fields, Tokens, TokenStats, pick

LossFn = Callable[[TokenStats, Tokens], Tensor]

# How many tokens of each half of the first chunk the token-by-token check looks at.
CHECKED_TOKENS = 128


def check_shape(loss_C: Any, tokens: int) -> None:
    """One floating number per token of the chunk, or a TypeError / ValueError."""
    if not isinstance(loss_C, Tensor):
        raise TypeError(
            f"loss_fn: expected a tensor [C], one loss per token, got {type(loss_C).__name__}"
        )
    if loss_C.shape != (tokens,):
        raise ValueError(
            f"loss_fn: expected shape [{tokens}] (one loss per token of the chunk), got "
            f"{list(loss_C.shape)}; "
            "do not reduce: the sum over tokens is taken for you"
        )
    if not loss_C.is_floating_point():
        raise TypeError(f"loss_fn: expected a floating dtype, got {loss_C.dtype}")


def versions_of(seen: TokenStats, tok: Tokens) -> dict[str, int]:
    """How often each tensor was written to; inference tensors don't count."""
    named = {f"s.{name}": value for name, value in vars(seen).items()}
    named |= {f"tok.{name}": value for name, value in vars(tok).items()}
    return {name: 0 if value.is_inference() else value._version for name, value in named.items()}


def check_unchanged(before: dict[str, int], after: dict[str, int]) -> None:
    """The caller's function wrote into none of its inputs (by their version counters)."""
    changed = [name for name, version in before.items() if after[name] != version]
    if changed:
        raise ValueError(
            f"loss_fn: {', '.join(changed)} was changed in place, which would make gradients or "
            "later reads wrong; compute a new tensor (x = x * 2, not x *= 2 or x.mul_(2))"
        )


def check_sources(total: Tensor, leaves: list[Tensor]) -> None:
    """The loss may depend on the statistics only: a gradient for anything else would be lost."""
    seen, waiting = set(), [total.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        source = getattr(node, "variable", None)
        if source is not None and not any(source is leaf for leaf in leaves):
            raise ValueError(
                f"loss_fn: the loss depends on a tensor of shape {list(source.shape)} that "
                "requires grad and comes from outside; it would get no gradient. Use its "
                ".detach(), or write the loss outside with token_stats"
            )
        waiting += [parent for parent, _ in node.next_functions]


def check_token_by_token(loss_fn: LossFn, seen: TokenStats, tok: Tokens, tokens: int) -> None:
    """Evaluate two groups of tokens apart and together, and one of them among many of half and
    among many of twice its numbers: a loss that mixes tokens (a mean, a maximum, a quantile) comes
    out differently. (Of a few tokens both groups can have the same ones above their quantiles.)

    Groups are a multiple of 64 tokens long, with repetitions: vector and scalar code of one
    function differ in the last bits, which a loss that cancels (exp(x) - 1) blows up, and like
    this each token stays where it was. So no absolute tolerance is needed, which normalised
    weights (1e-6) would fall below.
    """
    if tokens == 0:
        return
    middle = (tokens + 1) // 2
    width = -(-min(middle, CHECKED_TOKENS) // 64) * 64
    steps = torch.arange(width, device=next(iter(vars(seen).values())).device)
    first, second = steps * middle // width, middle + steps * (tokens - middle) // width

    def loss_of(rows: Tensor) -> Tensor:
        return loss_fn(pick(seen, rows), pick(tok, rows))

    alone = loss_of(first)
    agree = True
    for factor in (0.5, 2.0):
        among = loss_fn(_among(seen, first, factor), _among(tok, first, factor))
        agree = agree and _same(alone, among, width, 4 * width)
    if agree and tokens > 1:
        together = loss_of(torch.cat([first, second]))
        agree = _same(torch.cat([alone, loss_of(second)]), together, 2 * width, 2 * width)
    if not agree:
        raise ValueError(
            "loss_fn: the loss of a token depends on the other tokens of its chunk (the same token "
            "among others gets another value). It must act token by token; compute means, maxima "
            "and quantiles before and pass them in tokens="
        )


def _same(apart: Tensor, together: Tensor, tokens: int, all_tokens: int) -> bool:
    """Whether the losses of `tokens` tokens are the first of `all_tokens` that were evaluated."""
    return (
        apart.shape == (tokens,)
        and together.shape == (all_tokens,)
        and torch.allclose(apart, together[:tokens], rtol=1e-4, atol=0.0, equal_nan=True)
    )


def _among(fields: Fields, rows: Tensor, factor: float) -> Fields:
    """The tokens `rows`, behind them three times as many with `factor` times their numbers."""

    def crowd(value: Tensor) -> Tensor:
        value = value.detach()[rows]
        other = value * factor if value.is_floating_point() else value
        return torch.cat([value, other, other, other])

    return type(fields)({name: crowd(value) for name, value in vars(fields).items()})


def check_finite(problem: Problem, loss_C: Tensor, seen: TokenStats, lo: int) -> None:
    """Every loss is finite; the error names the token and its statistics that are not."""
    bad = (~torch.isfinite(loss_C)).nonzero()
    if not bad.numel():
        return
    row = int(bad[0])
    causes = [
        name
        for name, value in seen.items()
        if value.is_floating_point() and not torch.isfinite(value[row]).all()
    ]
    where = list(problem.position(lo + row))
    raise ValueError(
        f"loss_fn: the loss of token {where} is {float(loss_C[row])}; statistics of it that are "
        "not finite: "
        f"{', '.join(causes) or 'none, so it arises in loss_fn or in tokens='}"
    )


def check_coefficients(problem: Problem, coefs: dict[str, Tensor], lo: int) -> None:
    """Every derivative by a statistic is finite; the error names token and statistic."""
    for name, coef in coefs.items():
        if not torch.isfinite(coef).all():
            row = int((~torch.isfinite(coef.reshape(coef.shape[0], -1)).all(-1)).nonzero()[0])
            where = list(problem.position(lo + row))
            raise ValueError(
                f"loss_fn: the derivative of the loss of token {where} by s.{name} is not finite, "
                "though the loss itself is"
            )
