"""`LigerFusedLinearJSDLoss`: hard cross-entropy and soft divergence of Liger's chunked losses.

Shape letters: T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sdkernels.engine import HiddenTeacher, LMHead, TokenStats, token_loss
from sdkernels.engine.stats import Tokens
from sdkernels.recipes.divergence import divergence, engine_keywords


class LigerFusedLinearJSDLoss(nn.Module):
    """weight_hard_loss * CE + weight_soft_loss * divergence, means over tokens with a label.

    Args:
        weight_hard_loss, weight_soft_loss: factors of the two terms.
        beta: 0: KL(T||S), 1: KL(S||T), between: beta KL(T||M) + (1 - beta) KL(S||M).
        ignore_index: label of tokens that are left out.
        temperature: of the soft term only, as in Liger.
        compiled, chunk_size: accepted, without effect.
        return_soft_hard_loss: return (loss, soft, hard); the last two without gradient.

    Liger pads a smaller student vocabulary with logits of 0; here different vocabularies are an
    error.
    """

    def __init__(
        self,
        weight_hard_loss: float = 0.5,
        weight_soft_loss: float = 0.5,
        beta: float = 0.5,
        ignore_index: int = -100,
        temperature: float = 1.0,
        compiled: bool = True,
        chunk_size: int = 1024,
        return_soft_hard_loss: bool = False,
    ) -> None:
        super().__init__()
        self.weight_hard_loss = weight_hard_loss
        self.weight_soft_loss = weight_soft_loss
        self.beta = beta
        self.ignore_index = ignore_index
        self.temperature = temperature
        self.compiled = compiled
        self.chunk_size = chunk_size
        self.return_soft_hard_loss = return_soft_hard_loss

    def forward(
        self,
        student_input: Tensor,
        student_weight: Tensor,
        teacher_input: Tensor,
        teacher_weight: Tensor,
        true_labels: Tensor,
        student_bias: Tensor | None = None,
        teacher_bias: Tensor | None = None,
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Loss of hidden states `[T, D]` under heads `[V, D]` and labels `[T]`."""
        mask_T = true_labels != self.ignore_index
        count = mask_T.sum().clamp(min=1)
        shared: dict[str, Any] = {"targets": true_labels, "mask": mask_T}
        teacher = HiddenTeacher(teacher_input.detach(), LMHead(teacher_weight, teacher_bias))
        soft: dict[str, Any] = {
            "teacher": teacher,
            "temperature": self.temperature,
            **engine_keywords(self.beta),
        }
        head = LMHead(student_weight, student_bias)
        hard_weight, soft_weight = self.weight_hard_loss, self.weight_soft_loss

        def soft_fn(s: TokenStats, tok: Tokens) -> Tensor:
            return soft_weight * divergence(s, self.beta)

        def hard_fn(s: TokenStats, tok: Tokens) -> Tensor:
            return -hard_weight * s.logp

        wants_hard = hard_weight != 0 or self.return_soft_hard_loss
        if wants_hard and self.temperature == 1:
            total, stats = token_loss(
                student_input,
                head,
                lambda s, tok: soft_fn(s, tok) + hard_fn(s, tok),
                **shared,
                **soft,
            )
            hard_sum = -stats.logp.sum()
        else:
            total, stats = token_loss(student_input, head, soft_fn, **shared, **soft)
            hard_sum = total.new_zeros(())
            if wants_hard:
                # Liger takes the hard term at temperature 1: other logits, another pass.
                hard, hard_stats = token_loss(student_input, head, hard_fn, **shared)
                total, hard_sum = total + hard, -hard_stats.logp.sum()
        if not self.return_soft_hard_loss:
            return total / count
        with torch.no_grad():
            soft_sum = divergence(stats, self.beta).sum()
        return total / count, soft_sum / count, hard_sum / count
