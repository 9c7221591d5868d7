"""Per-token losses of all cases as plain PyTorch over log-softmaxes, nothing of sdkernels in them.

One text serves three purposes: the float64 answer that everything is compared with, the eager peer,
and the compiled peer. All values in nats. Shape letters: C tokens, V vocabulary, K ids of a
support.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .tokens import Tokens

Formula = Callable[[Tensor, "Tensor | None", Tokens], Tensor]

CLIP_LOW, CLIP_HIGH = 0.2, 0.28
TOPK = 100
DASD_BETA = 0.2
DASD_MIN_PROB = 1e-4
DASD_GAP_CLIP = 5.0


def chosen(logp_CV: Tensor, tok: Tokens) -> Tensor:
    """Log-prob of the sampled token `[C]`."""
    return logp_CV.gather(-1, tok.targets.unsqueeze(-1)).squeeze(-1)


def entropy(logp_CV: Tensor) -> Tensor:
    """H `[C]`."""
    return -(logp_CV.exp() * logp_CV).sum(-1)


def kl(first_CV: Tensor, second_CV: Tensor) -> Tensor:
    """KL(first || second) of two log-softmaxes `[C]`."""
    return (first_CV.exp() * (first_CV - second_CV)).sum(-1)


def even_jsd(student_CV: Tensor, teacher_CV: Tensor) -> Tensor:
    """KL(T||M)/2 + KL(S||M)/2 with M = (S + T)/2, `[C]`."""
    mixture_CV = torch.logaddexp(student_CV, teacher_CV) - math.log(2.0)
    return 0.5 * (kl(teacher_CV, mixture_CV) + kl(student_CV, mixture_CV))


def weighted_logprob_and_entropy(student_CV: Tensor, _: Tensor | None, tok: Tokens) -> Tensor:
    """a log S(y) + b H(S), a and b different for every token, as a trainer's weights are."""
    return tok.logp_weight * chosen(student_CV, tok) + tok.entropy_weight * entropy(student_CV)


def nll(student_CV: Tensor, _: Tensor | None, tok: Tokens) -> Tensor:
    """-log S(y)."""
    return -chosen(student_CV, tok)


def kl_teacher_student(student_CV: Tensor, teacher_CV: Tensor | None, _: Tokens) -> Tensor:
    """KL(T||S)."""
    assert teacher_CV is not None
    return kl(teacher_CV, student_CV)


def kl_student_teacher(student_CV: Tensor, teacher_CV: Tensor | None, _: Tokens) -> Tensor:
    """KL(S||T)."""
    assert teacher_CV is not None
    return kl(student_CV, teacher_CV)


def jsd(student_CV: Tensor, teacher_CV: Tensor | None, _: Tokens) -> Tensor:
    """JSD with equal shares."""
    assert teacher_CV is not None
    return even_jsd(student_CV, teacher_CV)


def clipped_surrogate(logp_C: Tensor, tok: Tokens) -> Tensor:
    """PPO's clipped ratio times the advantage, clip-higher 0.28 (GRPO 2402.03300 as in DAPO)."""
    ratio_C = (logp_C - tok.old_logp).exp()
    clipped_C = ratio_C.clamp(1.0 - CLIP_LOW, 1.0 + CLIP_HIGH)
    return -torch.minimum(ratio_C * tok.adv, clipped_C * tok.adv)


def grpo(student_CV: Tensor, _: Tensor | None, tok: Tokens) -> Tensor:
    """Clipped policy gradient on the group's advantage, no KL."""
    return clipped_surrogate(chosen(student_CV, tok), tok)


def sdpo_topk(student_CV: Tensor, teacher_CV: Tensor | None, _: Tokens) -> Tensor:
    """SDPO 2601.20802: JSD on the student's top 100 ids and one bucket for all the others."""
    assert teacher_CV is not None
    top_CK = student_CV.detach().topk(min(TOPK, student_CV.shape[-1] - 1), dim=-1).indices
    return even_jsd(
        _with_tail(student_CV.gather(-1, top_CK)), _with_tail(teacher_CV.gather(-1, top_CK))
    )


def _with_tail(logp_CK: Tensor) -> Tensor:
    mass_C = logp_CK.exp().sum(-1, keepdim=True)
    tail_C = (1.0 - mass_C).clamp(min=torch.finfo(logp_CK.dtype).eps).log()
    return torch.cat([logp_CK, tail_C], dim=-1)


def dasd(student_CV: Tensor, teacher_CV: Tensor | None, tok: Tokens) -> Tensor:
    """DASD 2605.22263, full-vocabulary form: GRPO's surrogate + beta w sigmoid(|g| - 1) D, where w
    in [-1, 1] falls with the student's entropy and g is the sampled token's gap in typical gaps;
    D = KL(T||S) where w > 0, min(JSD, log 2) elsewhere.
    """
    assert teacher_CV is not None
    logp_C = chosen(student_CV, tok)
    w_C = torch.tanh((tok.tau - entropy(student_CV).detach()) / tok.sigma)
    least = math.log(DASD_MIN_PROB)
    teacher_C = chosen(teacher_CV, tok)
    rare_C = (logp_C.detach() < least) | (teacher_C < least)
    w_C = w_C.masked_fill((w_C < 0) & rare_C, 0.0)
    gap_C = (teacher_C - logp_C.detach()) / tok.gap_scale
    w_C = w_C * torch.sigmoid(gap_C.abs().clamp(max=DASD_GAP_CLIP) - 1.0)
    push_C = even_jsd(student_CV, teacher_CV).clamp(max=math.log(2.0))
    signal_C = torch.where(w_C > 0, kl(teacher_CV, student_CV), push_C)
    return clipped_surrogate(logp_C, tok) + DASD_BETA * w_C * signal_C
