"""`token_stats`: per-token statistics that are differentiable outside, for losses written
elsewhere.

The forward pass keeps one number per token and statistic. The backward pass projects each chunk
again (12 T D V in all with a teacher and a trainable head) and takes the upstream gradients as
coefficients. With a frozen head and one statistic asked for, it keeps d stat / d hidden per token
instead (`[T, D]`) and recomputes nothing.

Shape letters: T tokens, C tokens of a chunk, V vocabulary, D hidden, K ids a token.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdkernels.engine.arguments import build_problem
from sdkernels.engine.compiling import one_graph_break
from sdkernels.engine.gating import attach_gate
from sdkernels.engine.grads import Gradients, first_derivative_only, saveable
from sdkernels.engine.heads import LMHead, as_head
from sdkernels.engine.problem import Problem
from sdkernels.engine.slab_free import choose_slab, wants_gradient
from sdkernels.engine.stats import DIFFERENTIABLE, TokenStats
from sdkernels.engine.teachers import Teacher


@one_graph_break
def token_stats(
    hidden: Tensor,
    head: LMHead | Tensor,
    *,
    targets: Tensor | None = None,
    teacher: Teacher | None = None,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    jsd_beta: float | None = None,
    entry_clip: float | None = None,
    topk: int | None = None,
    topk_of: str = "student",
    gate: Any = None,
    chunk_bytes: int | None = None,
    slab_dtype: str = "float32",
    slab_free: bool | None = None,
    backend: str = "auto",
    debug: bool = False,
) -> TokenStats:
    """Exact full-vocabulary statistics of each token; arguments as in `token_loss`.

    Args:
        slab_free: take `logp`, `entropy`, `lse` and `direction` of one model from a fused kernel
            that keeps no logits in memory (Triton rows, no gradient, no teacher, no `topk`). None:
            only where `chunk_bytes` is too small for the logits of 128 tokens. Equal to the other
            way but for the last bits.

    Returns:
        `TokenStats` with the leading shape of `hidden`, float32 (float64 for float64 inputs), in
        nats. Fields that depend on the student require grad when `hidden`, the head's weight or its
        bias do.

    Raises:
        ValueError, TypeError: an argument is wrong, or `slab_free=True` cannot give what is asked
            for. Statistics are not checked for being finite:
            KL(T||S) really is infinite where the student bans what the teacher allows.
    """
    return run_token_stats(
        hidden,
        head,
        only=None,
        mask=mask,
        gate=gate,
        targets=targets,
        teacher=teacher,
        tokens=None,
        temperature=temperature,
        teacher_temperature=teacher_temperature,
        jsd_beta=jsd_beta,
        entry_clip=entry_clip,
        topk=topk,
        topk_of=topk_of,
        chunk_bytes=chunk_bytes,
        slab_dtype=slab_dtype,
        slab_free=slab_free,
        backend=backend,
        debug=debug,
    )


def run_token_stats(
    hidden: Tensor,
    head: LMHead | Tensor,
    *,
    only: str | None,
    mask: Tensor | None,
    gate: Any,
    slab_free: bool | None = None,
    **settings: Any,
) -> TokenStats:
    """`token_stats`, with `only` naming the one statistic whose gradient will be asked for (None:
    any).
    """
    head = as_head(head)
    problem = build_problem(hidden, head, mask=mask, **settings)
    grows = wants_gradient(hidden, head.weight, head.bias)
    problem = choose_slab(problem, slab_free, wants_gradient=grows)
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        attach_gate(problem, gate, mask)
    holder = _Call(problem, only)
    weight, bias = head.weight, head.bias
    outputs = _TokenStats.apply(holder, hidden, weight, bias)
    computed = dict(zip(holder.names, outputs, strict=True))
    # Restoring and the top-k divergences are ordinary autograd on small tensors.
    fields = problem.user_stats(computed)
    return fields.map(problem.restore)


def stats_and_rows(
    hidden: Tensor, head: LMHead, only: str, **settings: Any
) -> tuple[TokenStats, Tensor]:
    """Statistics, and d `only` / d hidden of each token, `[..., D]` in the compute dtype."""
    with torch.autocast(hidden.device.type, enabled=False):
        problem = build_problem(hidden, head, **settings)
        stats, rows_ND = _forward(problem, only)
    assert rows_ND is not None
    return problem.user_stats(stats).map(problem.restore), problem.restore(rows_ND)


class _Call:
    """One call: the problem, what to differentiate, and the names of the outputs in order."""

    def __init__(self, problem: Problem, only: str | None) -> None:
        self.problem = problem
        self.only = only
        self.names: tuple[str, ...] = ()
        several_ids = only == "logp" and problem.ids_NK is not None and problem.ids_NK.shape[1] != 1
        # A row of d stat / d hidden per token serves one output only, and is waste without a
        # backward pass.
        self.one_number_a_token = only is not None and not several_ids and torch.is_grad_enabled()


class _TokenStats(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, call: _Call, hidden: Tensor, weight: Tensor, bias: Tensor | None
    ) -> tuple[Tensor, ...]:
        problem = call.problem
        ctx.set_materialize_grads(False)
        ctx.call = call
        ctx.keeps_rows = call.one_number_a_token and ctx.needs_input_grad == (
            False,
            True,
            False,
            False,
        )
        with torch.autocast(hidden.device.type, enabled=False):
            stats, rows_ND = _forward(problem, call.only if ctx.keeps_rows else None)
        call.names = tuple(stats)
        # Saved so that autograd notices if one of them is modified in place before backward.
        again = [] if ctx.keeps_rows else problem.constants()
        ctx.save_for_backward(rows_ND, *saveable([hidden, weight, bias, *again]))
        constants = [value for name, value in stats.items() if name not in DIFFERENTIABLE]
        ctx.mark_non_differentiable(*constants)
        return tuple(stats.values())

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        call, problem = ctx.call, ctx.call.problem
        rows_ND = ctx.saved_tensors[0]
        coefs_N = {
            name: grad
            for name, grad in zip(call.names, upstream, strict=True)
            if grad is not None and name in DIFFERENTIABLE
        }
        with torch.autocast(problem.device.type, enabled=False):
            if ctx.keeps_rows and set(coefs_N) == {call.only}:
                return None, _scale_rows(problem, rows_ND, coefs_N[call.only]), None, None
            return (None, *gradients_of(problem, coefs_N, ctx.needs_input_grad[1:]))


def gradients_of(
    problem: Problem, coefs_N: dict[str, Tensor], needs: tuple[bool, bool, bool]
) -> list[Tensor | None]:
    """Gradients of hidden, weight and bias, those that `needs` asks for, given one upstream
    gradient for each kept token and statistic.
    """
    gradients = Gradients(problem, hidden=needs[0], weight=needs[1], bias=needs[2])
    _backward(problem, gradients, coefs_N)
    return _in_own_dtypes(problem, gradients)


def _forward(problem: Problem, keep: str | None) -> tuple[dict[str, Tensor], Tensor | None]:
    slabs = problem.slabs()
    collected, rows = [], []
    for lo, hi in problem.plan.ranges:
        stats, state, _ = problem.forward_chunk(slabs, lo, hi)
        collected.append(stats)
        if keep is not None:
            ones = {keep: torch.ones_like(stats[keep])}
            rows.append(problem.hidden_gradient(*problem.logits_gradient(state, ones, stats)))
    fields = {name: torch.cat([chunk[name] for chunk in collected]) for name in collected[0]}
    return fields, torch.cat(rows) if rows else None


def _backward(problem: Problem, gradients: Gradients, coefs_N: dict[str, Tensor]) -> None:
    slabs = problem.slabs()
    for lo, hi in problem.plan.ranges:
        stats, state, hidden_CD = problem.forward_chunk(slabs, lo, hi)
        coefs = {name: coef[lo:hi] for name, coef in coefs_N.items()}
        gradients.add(*problem.logits_gradient(state, coefs, stats), hidden_CD, lo, hi)


def _in_own_dtypes(problem: Problem, gradients: Gradients) -> list[Tensor | None]:
    """Gradients of hidden, weight and bias in the dtypes of these."""
    sources = (problem.hidden, problem.head.weight, problem.head.bias)
    return [
        None if part is None or source is None else part.taken(source.dtype)
        for part, source in zip(gradients.parts(), sources, strict=True)
    ]


def _scale_rows(problem: Problem, rows_ND: Tensor, coef_N: Tensor) -> Tensor:
    grad_ND = (rows_ND * coef_N.reshape(-1, 1)).to(problem.hidden.dtype)
    if problem.kept_N is None:
        return grad_ND.reshape(problem.hidden.shape)
    grad_TD = torch.zeros(
        problem.total, grad_ND.shape[1], dtype=grad_ND.dtype, device=grad_ND.device
    )
    return grad_TD.index_copy_(0, problem.kept_N, grad_ND).reshape(problem.hidden.shape)
