"""sdkernels: the loss as a function of statistics, gradient formed in the forward pass; and its
per-token outputs with the loss written outside. Default byte budget.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import Tensor

import sdkernels as sd
from sdkernels import recipes

from ..formulas import (
    CLIP_HIGH,
    CLIP_LOW,
    DASD_BETA,
    DASD_GAP_CLIP,
    DASD_MIN_PROB,
    TOPK,
    clipped_surrogate,
)
from ..peer import Call, Peer, can_compile, first_of, on_cpu
from ..problem import Problem


def _teacher(problem: Problem) -> sd.HiddenTeacher | None:
    if problem.teacher_hidden_TD is None or problem.teacher_weight_VD is None:
        return None
    return sd.HiddenTeacher(problem.teacher_hidden_TD, problem.teacher_weight_VD)


def _loss(loss_fn: Any, *, targets: bool, **engine: Any) -> Call:
    """One call of `token_loss`."""

    def call(problem: Problem) -> Tensor:
        tokens = dict(problem.tokens.items())
        ids = tokens.pop("targets")
        value, _ = sd.token_loss(
            problem.hidden_TD,
            problem.weight_VD,
            loss_fn,
            targets=ids if targets else None,
            teacher=_teacher(problem),
            tokens=tokens,
            **engine,
        )
        return value

    return call


@lru_cache
def _recipe(name: str, **config: Any) -> Any:
    return recipes.get(name, **config)


def _recipe_loss(name: str, *, targets: bool, engine: dict[str, Any], **config: Any) -> Call:
    """A recipe, each token with weight 1."""
    recipe = _recipe(name, **config)

    def call(problem: Problem) -> Tensor:
        tokens = dict(problem.tokens.items())
        ids = tokens.pop("targets")
        kept = {key: value for key, value in tokens.items() if not key.endswith("_weight")}
        if name == "sdpo":
            kept = {}  # on-policy: importance weight 1, as in the formula
        kept["weight"] = ids.new_ones(ids.shape, dtype=problem.tokens.adv.dtype)
        value, _ = sd.token_loss(
            problem.hidden_TD,
            problem.weight_VD,
            recipe.loss_fn,
            targets=ids if targets else None,
            teacher=_teacher(problem),
            tokens=kept,
            **recipe.engine,
            **engine,
        )
        return value

    return call


def _logprob(problem: Problem) -> Tensor:
    logp_T = sd.linear_logprob(problem.hidden_TD, problem.weight_VD, problem.tokens.targets)
    assert isinstance(logp_T, Tensor)
    return logp_T


def _logprob_and_entropy(problem: Problem, **engine: Any) -> tuple[Tensor, Tensor]:
    logp_T, entropy_T = sd.linear_logprob(
        problem.hidden_TD, problem.weight_VD, problem.tokens.targets, with_entropy=True, **engine
    )
    return logp_T, entropy_T


def _logprob_and_entropy_compiled(problem: Problem) -> tuple[Tensor, Tensor]:
    return _logprob_and_entropy(problem, backend="compiled")


def _weighted(problem: Problem) -> Tensor:
    logp_T, entropy_T = _logprob_and_entropy(problem)
    tok = problem.tokens
    return (tok.logp_weight * logp_T + tok.entropy_weight * entropy_T).sum()


def _divergence(name: str) -> Call:
    def call(problem: Problem) -> Tensor:
        teacher = _teacher(problem)
        assert teacher is not None
        return sd.linear_divergence(problem.hidden_TD, problem.weight_VD, teacher, name).sum()

    return call


_CLIPS = {"clip_low": CLIP_LOW, "clip_high": CLIP_HIGH, "dual_clip": None}


def _losses(**engine: Any) -> dict[str, Call]:
    """The cases as loss functions of the engine."""
    return {
        "logprob-entropy": _loss(
            lambda s, tok: tok.logp_weight * s.logp + tok.entropy_weight * s.entropy,
            targets=True,
            **engine,
        ),
        "nll": _loss(lambda s, tok: -s.logp, targets=True, **engine),
        "kl-teacher-student": _loss(lambda s, tok: s.kl_teacher_student, targets=False, **engine),
        "kl-student-teacher": _loss(lambda s, tok: s.kl_student_teacher, targets=False, **engine),
        "jsd": _loss(lambda s, tok: s.jsd, targets=False, jsd_beta=0.5, **engine),
        "grpo": _recipe_loss("grpo", targets=True, engine=engine, **_CLIPS),
        "sdpo-topk": _recipe_loss(
            "sdpo",
            targets=False,
            engine=engine,
            support="student_topk",
            topk=TOPK,
            tail=True,
        ),
        "dasd": _recipe_loss(
            "dasd",
            targets=True,
            engine=engine,
            form="full_vocab",
            beta=DASD_BETA,
            gap_clip=DASD_GAP_CLIP,
            push_min_prob=DASD_MIN_PROB,
            **_CLIPS,
        ),
    }


PEERS = [
    Peer("sdkernels", "sdkernels", {"logprob-entropy-forward": _logprob_and_entropy, **_losses()}),
    Peer(
        "sdkernels-compiled",
        "sdkernels, backend='compiled'",
        {"logprob-entropy-forward": _logprob_and_entropy_compiled, **_losses(backend="compiled")},
        first_of(on_cpu, can_compile),
    ),
    Peer(
        "sdkernels-per-token",
        "sdkernels, per-token outputs",
        {
            "logprob-entropy": _weighted,
            "nll": lambda problem: -_logprob(problem).sum(),
            "kl-teacher-student": _divergence("kl_teacher_student"),
            "kl-student-teacher": _divergence("kl_student_teacher"),
            "jsd": _divergence("jsd"),
            "grpo": lambda problem: clipped_surrogate(_logprob(problem), problem.tokens).sum(),
        },
    ),
]
