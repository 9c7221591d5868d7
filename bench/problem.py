"""The tensors of one case at one shape, the float64 answer, and copies that defeat the cache.

Shape letters: T tokens, D hidden, V vocabulary, C tokens of a chunk, B sequences.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .cases import Case
from .formulas import chosen, entropy
from .shapes import Shape
from .tokens import Tokens

# Of the inputs.
MOST_COPIES = 64
SEQUENCES = 8
CHUNK_TOKENS = 256
CPU = torch.device("cpu")


@dataclass(frozen=True)
class Setting:
    """What is measured, without its tensors.

    Attributes:
        tokens: T.
        frozen: the head takes no gradient.
        own_teacher: the teacher is the student's own head over other hidden states
            (self-distillation); False: another model of the same size.
        dtype: of hidden states and heads.
    """

    case: Case
    shape: Shape
    tokens: int
    frozen: bool = False
    own_teacher: bool = False
    dtype: torch.dtype = torch.float32
    device: torch.device = CPU

    @property
    def products(self) -> int:
        """Least number of matrix products."""
        return self.case.products(frozen=self.frozen)

    @property
    def flops(self) -> int:
        """Floating point operations of these products."""
        return 2 * self.products * self.tokens * self.shape.hidden * self.shape.vocab


@dataclass
class Problem:
    """Inputs of one call. `hidden_TD` and, unless frozen, `weight_VD` are leaves that gradients are
    left in. Cases without a teacher have None there.

    Attributes:
        sequence_tokens: tokens of a sequence, which share an advantage; the last one may be
            shorter.
    """

    setting: Setting
    hidden_TD: Tensor
    weight_VD: Tensor
    teacher_hidden_TD: Tensor | None
    teacher_weight_VD: Tensor | None
    tokens: Tokens
    sequence_tokens: int

    @classmethod
    def make(cls, setting: Setting, seed: int = 0) -> Problem:
        """Random tensors whose softmax is neither flat nor a single peak (entropy about 8 nats at V
        = 49152).
        """
        shape, count = setting.shape, setting.tokens
        generator = torch.Generator(setting.device).manual_seed(seed)

        def normal(*size: int) -> Tensor:
            return torch.randn(size, generator=generator, device=setting.device)

        hidden_TD = normal(count, shape.hidden)
        weight_VD = normal(shape.vocab, shape.hidden).mul_(2.0 / shape.hidden**0.5)
        teacher_TD, teacher_VD = None, None
        if setting.case.teacher:
            teacher_TD = (hidden_TD + 0.3 * normal(count, shape.hidden)).to(setting.dtype)
            if not setting.own_teacher:
                noise_VD = normal(shape.vocab, shape.hidden).mul_(0.2 / shape.hidden**0.5)
                teacher_VD = noise_VD.add_(weight_VD).to(setting.dtype)
        hidden_TD, weight_VD = hidden_TD.to(setting.dtype), weight_VD.to(setting.dtype)
        if setting.case.teacher and setting.own_teacher:
            teacher_VD = weight_VD
        targets_T = torch.randint(shape.vocab, (count,), generator=generator, device=setting.device)
        length = -(-count // SEQUENCES)
        adv_B = setting.case.adv_scale * normal(SEQUENCES)
        adv_T = adv_B.repeat_interleave(length)[:count].contiguous()
        tokens = _tokens(hidden_TD, weight_VD, targets_T, adv_T, normal)
        if teacher_TD is not None and teacher_VD is not None:
            # What a gap is measured in: its mean size, as a trainer takes it from a sequence.
            own_T, _ = _chosen_and_entropy(hidden_TD, weight_VD, targets_T)
            teacher_T, _ = _chosen_and_entropy(teacher_TD, teacher_VD, targets_T)
            scale = (teacher_T - own_T).abs().mean() + 1e-6
            tokens = replace(tokens, gap_scale=scale.expand(count).contiguous())
        problem = cls(setting, hidden_TD, weight_VD, teacher_TD, teacher_VD, tokens, length)
        problem._make_leaves()
        return problem

    def _make_leaves(self) -> None:
        self.hidden_TD = self.hidden_TD.detach().requires_grad_(self.setting.case.backward)
        wanted = self.setting.case.backward and not self.setting.frozen
        self.weight_VD = self.weight_VD.detach().requires_grad_(wanted)
        if self.teacher_weight_VD is not None:
            self.teacher_weight_VD = self.teacher_weight_VD.detach()

    @property
    def leaves(self) -> list[Tensor]:
        """What takes a gradient."""
        return [leaf for leaf in (self.hidden_TD, self.weight_VD) if leaf.requires_grad]

    @property
    def nbytes(self) -> int:
        """Bytes of the inputs."""
        own = [self.hidden_TD, self.weight_VD, self.teacher_hidden_TD]
        own += [] if self.setting.own_teacher else [self.teacher_weight_VD]
        return sum(tensor.nbytes for tensor in own if tensor is not None)

    @property
    def gradient_bytes(self) -> int:
        """Bytes of the gradients that a call leaves."""
        return sum(leaf.nbytes for leaf in self.leaves)

    def clear(self) -> None:
        """Drop the gradients of the call before."""
        self.hidden_TD.grad = self.weight_VD.grad = None

    def fingerprint(self) -> tuple[float, ...]:
        """Sums over the inputs, which a call must leave as they are."""
        tensors = [self.hidden_TD, self.weight_VD, self.teacher_hidden_TD, self.teacher_weight_VD]
        tensors += vars(self.tokens).values()
        return tuple(
            tensor.detach().sum(dtype=torch.float64).item()
            for tensor in tensors
            if isinstance(tensor, Tensor)
        )

    def first(self, count: int) -> Problem:
        """At most the first `count` tokens, with the same heads. They are whole sequences, which
        some peers need; of one that is longer than `count`, its beginning.
        """
        if count >= self.setting.tokens:
            return self
        length = min(self.sequence_tokens, count)
        count -= count % length
        teacher_TD = self.teacher_hidden_TD
        part = replace(
            self,
            setting=replace(self.setting, tokens=count),
            hidden_TD=self.hidden_TD.detach()[:count],
            teacher_hidden_TD=None if teacher_TD is None else teacher_TD[:count],
            tokens=self.tokens.rows(0, count),
            sequence_tokens=length,
        )
        part._make_leaves()
        return part

    def copies(self, cache_bytes: int) -> list[Problem]:
        """This and as many copies in other memory as it takes so that a call finds nothing in a
        cache of `cache_bytes` that the same inputs left there: together more than twice its size;
        of inputs so small that it would take more, `MOST_COPIES`.
        """
        count = min(1 + 2 * cache_bytes // max(self.nbytes, 1), MOST_COPIES)
        return [self, *(self._copy() for _ in range(count - 1))]

    def _copy(self) -> Problem:
        def cloned(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor.detach().clone()

        weight_VD = self.weight_VD.detach().clone()
        other = replace(
            self,
            hidden_TD=self.hidden_TD.detach().clone(),
            weight_VD=weight_VD,
            teacher_hidden_TD=cloned(self.teacher_hidden_TD),
            teacher_weight_VD=(
                weight_VD
                if self.setting.case.teacher and self.setting.own_teacher
                else cloned(self.teacher_weight_VD)
            ),
            tokens=self.tokens.clone(),
        )
        other._make_leaves()
        return other


@dataclass(frozen=True)
class Answer:
    """What a call should leave: the loss of each token `[T]`, or log-probs and entropies `[2, T]`
    for the forward-only case; and the gradients of the summed loss.
    """

    per_token: Tensor
    gradients: list[Tensor]

    @property
    def value(self) -> Tensor:
        """The summed loss, one number; log-probs and entropies as they are."""
        return self.per_token.sum() if self.per_token.ndim == 1 else self.per_token


def float64_answer(problem: Problem) -> Answer:
    """Plain autograd over the logits in float64."""
    return plain_answer(problem, torch.float64)


def plain_answer(problem: Problem, dtype: torch.dtype) -> Answer:
    """Plain autograd over logits in `dtype`, some tokens at a time. Softmax, loss and the sum of
    the head's gradient over the parts are in float32 where `dtype` has 16 bits.
    """
    case = problem.setting.case
    wide = torch.promote_types(dtype, torch.float32)
    weight_VD = problem.weight_VD.detach().to(dtype).requires_grad_(problem.weight_VD.requires_grad)
    teacher_VD = problem.teacher_weight_VD
    teacher_VD = None if teacher_VD is None else teacher_VD.to(dtype)
    tokens = problem.tokens.double() if dtype == torch.float64 else problem.tokens
    values, hidden_grads = [], []
    weight_grad_VD: Tensor | None = None
    for lo, hi in _ranges(problem.setting.tokens, CHUNK_TOKENS):
        hidden_CD = problem.hidden_TD.detach()[lo:hi].to(dtype).requires_grad_(case.backward)
        student_CV = (hidden_CD @ weight_VD.t()).to(wide).log_softmax(-1)
        if not case.backward:
            values.append(
                torch.stack([chosen(student_CV, tokens.rows(lo, hi)), entropy(student_CV)])
            )
            continue
        teacher_CV = None
        if teacher_VD is not None:
            assert problem.teacher_hidden_TD is not None
            teacher_CD = problem.teacher_hidden_TD[lo:hi].to(dtype)
            teacher_CV = (teacher_CD @ teacher_VD.t()).to(wide).log_softmax(-1)
        loss_C = case.formula(student_CV, teacher_CV, tokens.rows(lo, hi))
        leaves = [leaf for leaf in (hidden_CD, weight_VD) if leaf.requires_grad]
        hidden_grad_CD, *of_weight = torch.autograd.grad(loss_C.sum(), leaves)
        values.append(loss_C.detach())
        hidden_grads.append(hidden_grad_CD)
        for grad_VD in of_weight:
            if weight_grad_VD is None:
                weight_grad_VD = grad_VD.to(wide)
            else:
                weight_grad_VD += grad_VD
    if not case.backward:
        return Answer(torch.cat(values, dim=1).detach(), [])
    gradients = [torch.cat(hidden_grads)]
    return Answer(
        torch.cat(values), gradients if weight_grad_VD is None else [*gradients, weight_grad_VD]
    )


@torch.no_grad()
def _tokens(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    targets_T: Tensor,
    adv_T: Tensor,
    normal: Callable[..., Tensor],
) -> Tokens:
    """Inputs of the losses, as a batch of rollouts would bring them."""
    count = targets_T.shape[0]
    logp_T, entropy_T = _chosen_and_entropy(hidden_TD, weight_VD, targets_T)
    # A threshold between the entropies, so that the gate pulls on most tokens and pushes on some.
    tau = entropy_T.kthvalue(max(1, int(0.8 * count))).values
    sigma = (entropy_T - entropy_T.mean()).abs().mean() + 1e-6
    return Tokens(
        targets=targets_T,
        logp_weight=normal(count),
        entropy_weight=normal(count),
        adv=adv_T,
        old_logp=(logp_T + 0.3 * normal(count)).clamp(max=0.0),
        tau=tau.expand(count).contiguous(),
        sigma=sigma.expand(count).contiguous(),
        gap_scale=torch.ones_like(logp_T),
    )


@torch.no_grad()
def _chosen_and_entropy(
    hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor
) -> tuple[Tensor, Tensor]:
    """Log-prob of the sampled ids and entropy `[T]`, some tokens at a time."""
    logps, entropies = [], []
    for lo, hi in _ranges(targets_T.shape[0], CHUNK_TOKENS):
        logp_CV = (hidden_TD[lo:hi] @ weight_VD.t()).float().log_softmax(-1)
        logps.append(logp_CV.gather(-1, targets_T[lo:hi, None]).squeeze(-1))
        entropies.append(entropy(logp_CV))
    return torch.cat(logps), torch.cat(entropies)


def _ranges(count: int, step: int) -> Iterator[tuple[int, int]]:
    return ((lo, min(lo + step, count)) for lo in range(0, count, step))
