"""Divergences between teacher T and student S as recipes use them: which one, on which support.

One number picks the divergence, as in the published code of SDPO, OPSD, GKD and TRL (run on
random tensors, 2026-11-22): with the mixture M = aT + (1-a)S,

    a = 0: KL(T||S)        a = 1: KL(S||T)        else: a KL(T||M) + (1-a) KL(S||M)

The mixture form tends to 0 at both ends, not to the KLs, so the ends are cases of their own.

Shape letters: C tokens of a chunk, K ids of a support.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from sdkernels.engine import topk as topk_lists
from sdkernels.recipes.settings import Setting, choice, flag, integer, number

TOPK = ("student_topk", "teacher_topk")
SUPPORTS = ("full", *TOPK)


def mixture_setting(default: float, doc: str, **conditions: Any) -> Setting:
    """The number that picks the divergence."""
    meaning = "0: KL(T||S), 1: KL(S||T), between: JSD with M = aT + (1-a)S"
    return number(default, f"{doc} ({meaning})", low=0.0, high=1.0, **conditions)


def support_settings(*, sampled: bool = False, topk: int = 100, tail: bool) -> dict[str, Setting]:
    """Settings `support`, `topk` and `tail`, with the source's defaults for the latter two."""
    supports = (*SUPPORTS, "sampled") if sampled else SUPPORTS
    return {
        "support": choice(
            "full",
            supports,
            "entries of the vocabulary that are compared; published code takes a top-k for memory",
        ),
        "topk": integer(
            topk,
            "ids of the support, tokens; None: those that a TopKTeacher brings",
            low=1,
            optional=True,
            when=("support", TOPK),
        ),
        "tail": flag(
            tail,
            "True: one more bucket holds the mass outside the top-k; False: renormalise on it",
            when=("support", TOPK),
        ),
    }


def check_support(recipe: str, topk: int | None, tail: bool | None) -> None:
    """Refuse the one support on which every divergence is identically 0."""
    if topk == 1 and tail is False:
        raise ValueError(
            f"recipe {recipe!r}: topk=1 with tail=False gives no signal (both sides renormalise "
            "to 1); give topk >= 2 or tail=True"
        )


def engine_keywords(
    mixture: float, support: str = "full", topk: int | None = None
) -> dict[str, Any]:
    """What `token_loss` needs so that `divergence` finds its statistics."""
    if support in TOPK:
        return {} if topk is None else {"topk": topk, "topk_of": support.removesuffix("_topk")}
    return {} if mixture in (0.0, 1.0) else {"jsd_beta": mixture}


def divergence(s: Any, mixture: float, support: str = "full", tail: bool | None = None) -> Tensor:
    """Divergence per token `[C]` in nats, differentiable in the student only."""
    if support in TOPK:
        return _bucket_divergence(s.topk_logp, s.teacher_topk_logp, mixture, tail=bool(tail))
    if mixture == 0.0:
        return s.kl_teacher_student
    if mixture == 1.0:
        return s.kl_student_teacher
    return s.jsd


def clipped_kl(s: Any, entry_clip: float, support: str, tail: bool | None) -> Tensor:
    """sum_v min(T log(T/S), entry_clip) `[C]`, nats, over the entries of the support."""
    if support not in TOPK:
        return s.clipped_kl_teacher_student
    derived = topk_lists.derived_statistics(
        s.topk_logp,
        s.teacher_topk_logp,
        tail=bool(tail),
        jsd_beta=None,
        entry_clip=entry_clip,
    )
    return derived["clipped_kl_teacher_student"]


def _bucket_divergence(
    logp_CK: Tensor, teacher_logp_CK: Tensor, mixture: float, *, tail: bool
) -> Tensor:
    student_CB = topk_lists.buckets(logp_CK, tail=tail)
    teacher_CB = topk_lists.buckets(teacher_logp_CK, tail=tail)
    if mixture == 0.0:
        return topk_lists.kl(teacher_CB, student_CB)
    if mixture == 1.0:
        return topk_lists.kl(student_CB, teacher_CB)
    return topk_lists.jsd(student_CB, teacher_CB, mixture)
