"""`token_loss`: any per-token loss over full-vocabulary statistics, its gradient formed in the
forward pass.

Each chunk of tokens is projected, reduced to statistics, weighed by the caller's loss function
under autograd (on [C]-sized tensors), and turned into gradients while its logits still exist.
Nothing is recomputed: 8 T D V floating point operations with a teacher and a trainable head, 6
without a teacher or with a frozen head. Saved for backward: the gradients themselves.

Shape letters: T tokens, N tokens left by the mask, C tokens of a chunk, V vocabulary, D hidden, K
    ids a token.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sdkernels.engine.arguments import build_problem
from sdkernels.engine.checks import (
    LossFn,
    check_coefficients,
    check_finite,
    check_shape,
    check_sources,
    check_token_by_token,
    check_unchanged,
    versions_of,
)
from sdkernels.engine.compiling import one_graph_break
from sdkernels.engine.gating import attach_gate
from sdkernels.engine.grads import (
    Gradients,
    Part,
    first_derivative_only,
    graph_is_kept,
    needs_grad,
)
from sdkernels.engine.heads import LMHead, as_head
from sdkernels.engine.problem import Problem
from sdkernels.engine.stats import DIFFERENTIABLE, TokenStats
from sdkernels.engine.teachers import Teacher


@one_graph_break
def token_loss(
    hidden: Tensor,
    head: LMHead | Tensor,
    loss_fn: LossFn,
    *,
    targets: Tensor | None = None,
    teacher: Teacher | None = None,
    tokens: Mapping[str, Tensor] | None = None,
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
    backend: str = "auto",
    debug: bool = False,
) -> tuple[Tensor, TokenStats]:
    """Sum over tokens of `loss_fn`, with gradients for hidden states, head weight and bias.

    Args:
        hidden: `[..., D]` student hidden states; float64, float32, bfloat16 or float16.
        head: `LMHead` or bare weight `[V, D]`.
        loss_fn: `loss_fn(s, tok) -> [C]`. `s` has the statistics of C tokens, `tok` the caller's
            tensors for the same tokens. It must act token by token: it sees one chunk at a time.
        targets: `[...]` token ids, or `[..., K]` for K ids a token; for `logp` and `teacher_logp`.
        teacher: `HiddenTeacher`, `LogitsTeacher` or `TopKTeacher` over the same tokens.
        tokens: per-token tensors `[...]` or `[..., n]` for the loss function, read as `tok.name`.
            Constants.
        mask: bool `[...]`; tokens where it is False are left out before the first product and
            report 0. On a GPU its number of tokens is read once; int64 `[N]`, the rising flat
            positions of the tokens to keep, saves that.
        temperature: divides the student's logits, and the teacher's unless `teacher_temperature` is
            given.
        jsd_beta: asks for `jsd`, with M = beta T + (1 - beta) S; strictly between 0 and 1.
        entry_clip: asks for `clipped_kl_teacher_student`, in nats per vocabulary entry.
        topk, topk_of: ask for true log-probs of both models on the top-k ids of the "student" or
            "teacher".
        gate: entropy gate that writes `direction` (see `sdkernels.gates`). One that needs a
            quantile costs a no-grad pass over the student first, unless it was bound to recorded
            entropies.
        chunk_bytes: memory for logits and scratch; default 256 MiB on CPU, 2.5 % of the memory of a
            GPU.
        slab_dtype: "float32" logits, or "model" for the dtype of `hidden` (half the traffic in
            bf16, less exact).
        backend: "auto", "triton", "torch", or "compiled" (torch.compile; the first call takes
            seconds, later ones less than with "torch").
        debug: also make the checks that cost a synchronisation on a GPU (ids in range, finite loss,
            token by token).

    Returns:
        A scalar, and the detached statistics with the leading shape of `hidden`. The scalar is
        float32 (float64 for float64 inputs). Over no token it is 0, and its gradients are zeros
        that still touch the weights.

    Raises:
        ValueError, TypeError: an argument is wrong, `loss_fn` returns another shape than `[C]`,
            depends on other tokens, or is not finite (the message names the token and the
            statistic).
    """
    head = as_head(head)
    if not callable(loss_fn):
        raise TypeError(f"loss_fn: expected a function of (s, tok), got {type(loss_fn).__name__}")
    problem = build_problem(
        hidden,
        head,
        targets=targets,
        teacher=teacher,
        tokens=tokens,
        mask=mask,
        temperature=temperature,
        teacher_temperature=teacher_temperature,
        jsd_beta=jsd_beta,
        entry_clip=entry_clip,
        topk=topk,
        topk_of=topk_of,
        chunk_bytes=chunk_bytes,
        slab_dtype=slab_dtype,
        backend=backend,
        debug=debug,
    )
    gradients = Gradients(
        problem,
        hidden=needs_grad(hidden),
        weight=needs_grad(head.weight),
        bias=needs_grad(head.bias),
    )
    with torch.no_grad(), torch.autocast(hidden.device.type, enabled=False):
        attach_gate(problem, gate, mask)
        loss, stats = _run(problem, loss_fn, gradients)
    if gradients.wanted:
        loss = _Attach.apply(loss, gradients.parts(), hidden, head.weight, head.bias)
    return loss, stats


def _run(problem: Problem, loss_fn: LossFn, gradients: Gradients) -> tuple[Tensor, TokenStats]:
    slabs = problem.slabs()
    losses, collected = [], []
    for lo, hi in problem.plan.ranges:
        stats, state, hidden_CD = problem.forward_chunk(slabs, lo, hi)
        loss, coefs, reported = _weigh(problem, loss_fn, stats, lo, hi)
        losses.append(loss)
        collected.append(reported)
        if gradients.wanted:
            # Not in a variable, which would hold it while the next chunk's is made.
            dz = problem.logits_gradient(state, coefs, stats)
            gradients.add(*dz, hidden_CD, lo, hi)
            del dz
    fields = {
        name: problem.restore(torch.cat([chunk[name] for chunk in collected]))
        for name in collected[0]
    }
    return torch.stack(losses).sum(), TokenStats(fields)


def _weigh(
    problem: Problem, loss_fn: LossFn, stats: dict[str, Tensor], lo: int, hi: int
) -> tuple[Tensor, dict[str, Tensor], TokenStats]:
    """Run the caller's function on the chunk's statistics: its sum, and one coefficient per token
    and statistic.
    """
    leaves = {
        name: value.detach().requires_grad_(name in DIFFERENTIABLE) for name, value in stats.items()
    }
    tok = problem.tokens(lo, hi)
    with torch.enable_grad():
        seen = problem.user_stats(leaves)
        versions = versions_of(seen, tok)
        loss_C = loss_fn(seen, tok)
        check_shape(loss_C, hi - lo)
        total = loss_C.sum(dtype=problem.spec.compute_dtype)
    check_unchanged(versions, versions_of(seen, tok))
    if lo == 0 and problem.grad_enabled:
        check_sources(total, list(leaves.values()))
    if problem.check:
        if lo == 0:
            check_token_by_token(loss_fn, seen, tok, hi - lo)
        check_finite(problem, loss_C.detach(), seen, lo)
    sources = [name for name, leaf in leaves.items() if leaf.requires_grad]
    found: tuple[Tensor | None, ...] = (None,) * len(sources)
    if total.requires_grad:
        found = torch.autograd.grad(total, [leaves[name] for name in sources], allow_unused=True)
    coefs = {name: grad for name, grad in zip(sources, found, strict=True) if grad is not None}
    if problem.check:
        check_coefficients(problem, coefs, lo)
    return total.detach(), coefs, seen.map(Tensor.detach)


class _Attach(torch.autograd.Function):
    """Hands gradients that already exist to autograd, times the upstream scalar."""

    @staticmethod
    def forward(
        ctx: Any,
        loss: Tensor,
        parts: tuple[Part | None, ...],
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
    ) -> Tensor:
        ctx.parts = parts
        ctx.dtypes = [None if x is None else x.dtype for x in (hidden, weight, bias)]
        return loss.clone()

    @staticmethod
    @first_derivative_only
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        parts = ctx.parts
        if parts is None:
            raise RuntimeError(
                "token_loss: backward a second time; call the first with retain_graph=True"
            )
        # Where the graph is freed now, a [V, D] gradient is scaled in place and exists once.
        kept = graph_is_kept()
        if not kept:
            ctx.parts = None
        grads = [
            None if part is None else part.times(upstream, dtype, reuse=not kept)
            for part, dtype in zip(parts, ctx.dtypes, strict=True)
        ]
        return (None, None, *grads)
