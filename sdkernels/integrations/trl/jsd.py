"""GKD and GOLD: their generalised JSD on deferred logits.

The trainers' `compute_loss` runs as it is; student and teacher return `DeferredLogits`, and the
divergence on them is the engine's. Shape letters: B sequences, L positions.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from torch import Tensor

from sdkernels.engine import HiddenTeacher, token_loss
from sdkernels.integrations.deferred import DeferredLogits, deferring
from sdkernels.recipes.divergence import divergence, engine_keywords

Base: Any = Any if TYPE_CHECKING else object


class GKDEngine(Base):  # type: ignore[misc, unused-ignore]
    """Methods put in front of `GKDTrainer`'s."""

    REPLACED = ("generalized_jsd_loss",)
    DEFERS = True

    @staticmethod
    def models_of(trainer: Any) -> list[Any]:
        """The models whose heads the loss applies."""
        return [trainer.model, trainer.teacher_model]

    @staticmethod
    def refusals(trainer: Any) -> Iterator[str]:
        """Options that can't be honoured, and what to do."""
        if getattr(trainer, "_is_vlm", False):
            yield "a vision-language model: not supported; train a text model"

    def compute_loss(
        self,
        model: Any,
        inputs: Any,
        return_outputs: bool = False,
        num_items_in_batch: Any = None,
    ) -> Any:
        """The trainer's own, without logits; with `return_outputs` (evaluation that computes
        metrics) the caller wants them, and gets the untouched trainer's.
        """
        if return_outputs:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        autocast = self.accelerator.autocast
        with deferring(model, autocast), deferring(self.teacher_model, autocast):
            return super().compute_loss(model, inputs, num_items_in_batch=num_items_in_batch)

    def generalized_jsd_loss(
        self,
        student_logits: Any,
        teacher_logits: Any,
        labels: Tensor | None = None,
        beta: float = 0.5,
        temperature: float = 1.0,
        reduction: str = "batchmean",
        num_items_in_batch: Tensor | int | None = None,
        **options: Any,
    ) -> Tensor:
        """JSD summed over tokens with a label, divided by their number or `num_items_in_batch`."""
        if not isinstance(student_logits, DeferredLogits):
            found: Tensor = super().generalized_jsd_loss(
                student_logits,
                teacher_logits,
                labels=labels,
                beta=beta,
                temperature=temperature,
                reduction=reduction,
                num_items_in_batch=num_items_in_batch,
                **options,
            )
            return found
        self._engine_reached()
        assert labels is not None
        assert reduction == "batchmean"
        mask_BL = labels != -100
        total, _ = token_loss(
            student_logits.hidden,
            student_logits.head,
            lambda s, tok: divergence(s, beta),
            teacher=HiddenTeacher(teacher_logits.hidden, teacher_logits.head),
            mask=mask_BL,
            temperature=temperature * student_logits.temperature,
            **engine_keywords(beta),
        )
        if num_items_in_batch is None:
            num_items_in_batch = mask_BL.sum().clamp(min=1)
        if isinstance(num_items_in_batch, Tensor):
            num_items_in_batch = num_items_in_batch.to(total.device)
        return total / num_items_in_batch


class GOLDEngine(GKDEngine):
    """Methods put in front of `GOLDTrainer`'s."""

    @staticmethod
    def refusals(trainer: Any) -> Iterator[str]:
        """Options that can't be honoured, and what to do."""
        yield from GKDEngine.refusals(trainer)
        if trainer.use_uld_loss and trainer.teacher_tokenizer is not None:
            yield (
                "use_uld_loss=True with a teacher tokenizer: distributions over two vocabularies "
                "are compared, the engine needs one; set use_uld_loss=False if the tokenizers agree"
            )
