"""Named shortcuts: the two per-token quantities most trainers want, with gradients.

Shape letters: T tokens (any leading shape), V vocabulary, D hidden.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from sdkernels.engine import library
from sdkernels.engine.arguments import mask_of
from sdkernels.engine.heads import LMHead, as_head
from sdkernels.engine.scalars import is_number
from sdkernels.engine.stats import Tokens, TokenStats
from sdkernels.engine.teachers import Teacher, TopKTeacher
from sdkernels.engine.token_loss import token_loss
from sdkernels.engine.token_stats import run_token_stats

DIVERGENCES = ("kl_teacher_student", "kl_student_teacher", "jsd")
REDUCTIONS = ("none", "sum", "mean")

_UNUSED: dict[str, Any] = {
    "teacher": None,
    "tokens": None,
    "jsd_beta": None,
    "entry_clip": None,
    "topk": None,
    "topk_of": "student",
    "slab_dtype": "float32",
}


def linear_logprob(
    hidden: Tensor,
    head: LMHead | Tensor,
    targets: Tensor,
    *,
    with_entropy: bool = False,
    mask: Tensor | None = None,
    temperature: float = 1.0,
    chunk_bytes: int | None = None,
    backend: str = "auto",
    debug: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """log softmax(hidden @ weight.T)[targets] for each token, and the entropy of the softmax, both
    differentiable.

    Args:
        hidden: `[..., D]`.
        head: `LMHead` or weight `[V, D]`.
        targets: `[...]` ids, or `[..., K]`.
        with_entropy: also return the entropy.
        mask, temperature, chunk_bytes, backend, debug: as in `token_loss`.

    Returns:
        `logp` with the shape of `targets`, in nats; with `with_entropy` the pair `(logp, entropy)`.
        Masked tokens: 0.

    Example:
        >>> import sdkernels as sd
        >>> hidden, weight = torch.zeros(2, 4), torch.ones(10, 4)  # logits 0: uniform over 10
        >>> sd.linear_logprob(hidden, weight, torch.tensor([3, 7])).exp()
        tensor([0.1000, 0.1000])
    """
    if torch.compiler.is_compiling():
        names = ("logp", "entropy") if with_entropy else ("logp",)
        found = library.statistics(
            names,
            hidden,
            as_head(head),
            targets=targets,
            mask=mask,
            temperature=temperature,
            chunk_bytes=chunk_bytes,
            backend=backend,
            debug=debug,
        )
        return (found[0], found[1]) if with_entropy else found[0]
    stats = run_token_stats(
        hidden,
        head,
        only=None if with_entropy else "logp",
        mask=mask,
        gate=None,
        **_UNUSED,
        targets=targets,
        temperature=temperature,
        teacher_temperature=None,
        chunk_bytes=chunk_bytes,
        backend=backend,
        debug=debug,
    )
    return (stats.logp, stats.entropy) if with_entropy else stats.logp


def linear_divergence(
    hidden: Tensor,
    head: LMHead | Tensor,
    teacher: Teacher,
    divergence: str = "kl_teacher_student",
    *,
    beta: float = 0.5,
    weights: Tensor | None = None,
    reduction: str = "none",
    mask: Tensor | None = None,
    temperature: float = 1.0,
    teacher_temperature: float | None = None,
    chunk_bytes: int | None = None,
    backend: str = "auto",
    debug: bool = False,
) -> Tensor:
    """Divergence between student and teacher over the full vocabulary, for each token or reduced.

    Args:
        hidden: `[..., D]` student hidden states.
        head: the student's `LMHead` or weight `[V, D]`.
        teacher: `HiddenTeacher`, `LogitsTeacher` or `TopKTeacher`.
        divergence: "kl_teacher_student" = KL(T||S), "kl_student_teacher" = KL(S||T), or "jsd" =
            beta KL(T||M) + (1 - beta) KL(S||M) with M = beta T + (1 - beta) S.
        beta: the teacher's share in "jsd", strictly between 0 and 1; unused otherwise.
        weights: `[...]` constants, may be negative; the result is weights * divergence.
        reduction: "none" gives `[...]`; "sum" and "mean" (over the tokens that the mask leaves; 0
            for none) a scalar, with the gradient formed in the forward pass (nothing is
            recomputed).
        mask, temperature, teacher_temperature, chunk_bytes, backend, debug: as in `token_loss`.

    Raises:
        ValueError: unknown divergence or reduction, beta out of range, or any error of
            `token_loss`.

    Example:
        >>> import sdkernels as sd
        >>> hidden, weight = torch.eye(2), torch.tensor([[0.0, 1.0], [0.0, 1.0]])
        >>> uniform = sd.LogitsTeacher(torch.zeros(2, 2))
        >>> sd.linear_divergence(hidden, weight, uniform, "kl_teacher_student")
        tensor([0., 0.])
    """
    if divergence not in DIVERGENCES:
        raise ValueError(
            f"divergence={divergence!r}: accepted are {', '.join(map(repr, DIVERGENCES))}"
        )
    if reduction not in REDUCTIONS:
        raise ValueError(
            f"reduction={reduction!r}: accepted are {', '.join(map(repr, REDUCTIONS))}"
        )
    if divergence == "jsd" and not (is_number(beta) and 0 < beta < 1):
        raise ValueError(
            f"beta={beta!r}: expected a number strictly between 0 and 1; the divergences at the "
            "ends are 'kl_teacher_student' and 'kl_student_teacher'"
        )
    if teacher is None:
        raise TypeError("teacher: expected a HiddenTeacher, LogitsTeacher or TopKTeacher, got None")
    shared: dict[str, Any] = {
        "teacher": teacher,
        "mask": mask,
        "temperature": temperature,
        "teacher_temperature": teacher_temperature,
        "jsd_beta": beta if divergence == "jsd" else None,
        "chunk_bytes": chunk_bytes,
        "backend": backend,
        "debug": debug,
    }
    if torch.compiler.is_compiling():
        (value,) = library.statistics((divergence,), hidden, as_head(head), **shared)
        return _reduced(_weighted(value, weights, mask), reduction, mask)
    if reduction == "none":
        stats = run_token_stats(
            hidden,
            head,
            # A top-k teacher's divergences are made of several log-probs, not of one row per token.
            only=None if isinstance(teacher, TopKTeacher) else divergence,
            gate=None,
            **{**_UNUSED, "targets": None, **shared},
        )
        return _weighted(stats[divergence], weights, mask)
    if weights is not None:
        _check_weights(weights, hidden.shape[:-1])

    def loss_fn(s: TokenStats, tok: Tokens) -> Tensor:
        return s[divergence] if weights is None else tok.weights * s[divergence]

    loss, _ = token_loss(
        hidden, head, loss_fn, tokens=None if weights is None else {"weights": weights}, **shared
    )
    return loss if reduction == "sum" else loss / _count(hidden.shape[:-1], mask)


def _weighted(value: Tensor, weights: Tensor | None, mask: Tensor | None) -> Tensor:
    if weights is None:
        return value
    _check_weights(weights, value.shape)
    if mask is not None:
        # What stands in masked places, NaN too, must not meet their 0.
        weights = weights.masked_fill(~mask_of(mask, weights.shape), 0.0)
    return value * weights


def _reduced(value: Tensor, reduction: str, mask: Tensor | None) -> Tensor:
    if reduction == "none":
        return value
    total = value.sum()
    return total if reduction == "sum" else total / _count(value.shape, mask)


def _count(shape: torch.Size, mask: Tensor | None) -> int | Tensor:
    """Number of tokens that the mask leaves, at least 1."""
    if mask is None or mask.dtype == torch.int64:
        return max(shape.numel() if mask is None else mask.numel(), 1)
    return mask.sum().clamp(min=1)


def _check_weights(weights: Tensor, shape: torch.Size) -> None:
    if not isinstance(weights, Tensor) or weights.shape != shape:
        came = list(weights.shape) if isinstance(weights, Tensor) else type(weights).__name__
        raise ValueError(f"weights: expected a tensor of shape {list(shape)}, got {came}")
