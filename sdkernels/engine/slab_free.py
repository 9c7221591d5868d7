"""Statistics without logits in memory: when `token_stats` takes the fused kernel instead of slabs.

The kernel multiplies and reduces tile by tile, so it serves what one pass over one model's logits
gives (`logp` of a few ids, `entropy`, `lse`, `direction`) and no gradient. By itself the engine
takes it only where the byte budget forbids a slab of `configs.FEWEST_SLAB_TOKENS` tokens: which of
the two is faster elsewhere has not been measured on a GPU.
"""

from __future__ import annotations

from dataclasses import replace

import torch

from sdkernels.engine.chunks import plan_chunks
from sdkernels.engine.problem import Problem
from sdkernels.kernels.configs import FEWEST_SLAB_TOKENS


def choose_slab(problem: Problem, slab_free: bool | None, *, wants_gradient: bool) -> Problem:
    """The problem, to be run without slabs where `slab_free` (None: the launch table) says so.

    Raises:
        TypeError: `slab_free` is neither a bool nor None.
        ValueError: `slab_free=True` for what the kernel does not do; the message says why.
    """
    if not (slab_free is None or isinstance(slab_free, bool)):
        raise TypeError(f"slab_free={slab_free!r}: expected True, False or None (the launch table)")
    if slab_free is False or (slab_free is None and problem.plan.fits >= FEWEST_SLAB_TOKENS):
        return problem
    reason = _refusal(problem, wants_gradient)
    if reason is not None:
        if slab_free is None:
            return problem
        raise ValueError(f"slab_free=True: {reason}; leave slab_free out, or pass False")
    head, fused = problem.head, problem.backend.fused
    assert fused is not None
    per_token = fused.token_bytes(head.weight, problem.spec)
    per_token += 2 * head.hidden_size * problem.hidden.dtype.itemsize
    plan = plan_chunks(problem.plan.tokens, per_token, lambda tokens: 0, problem.budget_bytes)
    return replace(problem, plan=plan, slab_free=True)


def _refusal(problem: Problem, wants_gradient: bool) -> str | None:
    """Why the fused kernel cannot serve this, or None."""
    spec = problem.spec
    if wants_gradient:
        return "a gradient is wanted, which needs the logits; call it under torch.no_grad()"
    if problem.teacher is not None:
        return (
            "a teacher= needs both models' logits at once; for statistics of the teacher alone "
            "pass its hidden states and head as hidden and head"
        )
    if spec.topk is not None:
        return f"topk={spec.topk} needs the logits of a whole row"
    if problem.slab_dtype != spec.compute_dtype:
        return "slab_dtype='model' is about slabs, and there would be none"
    if problem.backend.fused is None:
        return f"the {problem.backend.name} rows need logits in memory; the kernel is Triton's"
    ids = 0 if problem.ids_NK is None else problem.ids_NK.shape[1]
    return problem.backend.fused.refusal(problem.hidden, problem.head.weight, ids)


def wants_gradient(*tensors: torch.Tensor | None) -> bool:
    """Whether autograd will record what is made of these."""
    found = any(tensor is not None and tensor.requires_grad for tensor in tensors)
    return found and torch.is_grad_enabled()
