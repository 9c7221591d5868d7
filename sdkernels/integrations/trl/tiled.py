"""GRPO and DistillationTrainer: TRL tiles these losses itself; the tiled functions are replaced.

Everything around them is TRL's: which hidden states, gathering shards, entropy masks, the policy
loss. Both run inside the wrapped model's forward, so DDP and FSDP see them.

Shape letters: N tokens, B sequences, L positions, V vocabulary, D hidden.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdkernels.engine import HiddenTeacher, LMHead, token_loss
from sdkernels.engine.heads import is_dtensor
from sdkernels.integrations.undo import swapped
from sdkernels.ops import linear_logprob
from sdkernels.recipes.divergence import divergence, engine_keywords

Base: Any = Any if TYPE_CHECKING else object


class GRPOEngine(Base):  # type: ignore[misc, unused-ignore]
    """Methods put in front of `GRPOTrainer`'s."""

    REPLACED = ()
    DEFERS = False

    @staticmethod
    def models_of(trainer: Any) -> list[Any]:
        """The models whose heads the loss applies."""
        return [model for model in (trainer.model, trainer.ref_model) if model is not None]

    @staticmethod
    def refusals(trainer: Any) -> Iterator[str]:
        """Options that can't be honoured, and what to do."""
        yield from ()

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        from trl.trainer import utils

        with ExitStack() as stack:
            log_prob = _EngineLogProb(self._engine_reached)
            stack.enter_context(swapped(utils, "_ChunkedLogProbFunction", log_prob))
            # TRL scores prompts and padding too on devices without Triton; the engine need not.
            stack.enter_context(swapped(utils, "_use_triton", lambda device: True))
            return super()._get_per_token_logps_and_entropies(*args, **kwargs)


class _EngineLogProb:
    """Stands in for TRL's autograd function, with an `apply` of the same signature; `reached` is
    called in it.
    """

    def __init__(self, reached: Callable[[], None]) -> None:
        self._reached = reached

    def apply(
        self,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        temperature: float,
        chunk_size: int,
        softcap: float | None,
        scale: float,
        outputs: tuple[str, ...],
    ) -> tuple[Tensor | None, ...]:
        """(log-probs, entropy or None, None, None, None); `chunk_size` is the engine's business."""
        self._reached()
        beyond = set(outputs) - {"log_probs", "entropy"}
        if beyond:
            raise ValueError(f"outputs: the engine gives log_probs and entropy, not {beyond}")
        hidden_ND, weight_VD, bias_V = _as_computed(hidden_ND, weight_VD, bias_V)
        found = linear_logprob(
            hidden_ND,
            LMHead(weight_VD, bias_V, scale=scale, softcap=softcap),
            targets_N,
            with_entropy="entropy" in outputs,
            temperature=temperature,
        )
        logp_N, entropy_N = found if isinstance(found, tuple) else (found, None)
        return logp_N, entropy_N, None, None, None


class DistillationEngine(Base):  # type: ignore[misc, unused-ignore]
    """Methods put in front of `DistillationTrainer`'s."""

    REPLACED = ()
    DEFERS = False

    @staticmethod
    def models_of(trainer: Any) -> list[Any]:
        """The models whose heads the loss applies."""
        return [trainer.model, trainer.teacher_model]

    @staticmethod
    def refusals(trainer: Any) -> Iterator[str]:
        """Options that can't be honoured, and what to do."""
        if trainer.teacher_model is None:
            yield (
                "teacher_model=None (ServerDistillationTrainer): log-probs come from a server; "
                "use a local teacher"
            )

    def _compute_loss(self, *args: Any, **kwargs: Any) -> Any:
        from trl import DistillationTrainer

        def divergence_loss(*args: Any, **kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
            self._engine_reached()
            return _divergence_loss(*args, **kwargs)

        module = sys.modules[DistillationTrainer.__module__]
        with swapped(module, "_chunked_divergence_loss", divergence_loss):
            return super()._compute_loss(*args, **kwargs)


def _divergence_loss(
    student_hidden_BLD: Tensor,
    teacher_hidden_BLD: Tensor,
    student_weight_VD: Tensor,
    teacher_weight_VD: Tensor,
    mask_BL: Tensor,
    beta: float,
    num_items_in_batch: Tensor | int | None = None,
    student_lm_head_bias: Tensor | None = None,
    teacher_lm_head_bias: Tensor | None = None,
    student_logit_scale: float = 1.0,
    teacher_logit_scale: float = 1.0,
    student_final_logit_softcapping: float | None = None,
    teacher_final_logit_softcapping: float | None = None,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """(loss, sum of the student's entropies, number of tokens), signature as in TRL."""
    keep_BL = mask_BL != 0
    student_hidden_BLD, student_weight_VD, student_bias_V = _as_computed(
        student_hidden_BLD, student_weight_VD, student_lm_head_bias
    )
    teacher_hidden_BLD, teacher_weight_VD, teacher_bias_V = _as_computed(
        teacher_hidden_BLD, teacher_weight_VD, teacher_lm_head_bias
    )
    total, stats = token_loss(
        student_hidden_BLD,
        LMHead(
            student_weight_VD,
            student_bias_V,
            scale=student_logit_scale,
            softcap=student_final_logit_softcapping,
        ),
        lambda s, tok: divergence(s, beta),
        teacher=HiddenTeacher(
            teacher_hidden_BLD.detach(),
            LMHead(
                teacher_weight_VD,
                teacher_bias_V,
                scale=teacher_logit_scale,
                softcap=teacher_final_logit_softcapping,
            ),
        ),
        mask=keep_BL,
        temperature=temperature,
        **engine_keywords(beta),
    )
    count = keep_BL.sum()
    if num_items_in_batch is None:
        num_items_in_batch = count.clamp(min=1)
    elif isinstance(num_items_in_batch, Tensor):
        num_items_in_batch = num_items_in_batch.to(total.device)
    return total / num_items_in_batch, stats.entropy.sum(), count


def _as_computed(
    hidden: Tensor, weight_VD: Tensor, bias_V: Tensor | None
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Shards gathered, and everything in the dtype in which autocast would take the product."""
    given: list[Any] = [hidden, weight_VD, bias_V]
    parts = [x.full_tensor() if x is not None and is_dtensor(x) else x for x in given]
    kind = hidden.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
        parts = [None if x is None else x.to(dtype) for x in parts]
    return parts[0], parts[1], parts[2]
