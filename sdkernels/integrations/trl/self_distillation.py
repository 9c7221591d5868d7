"""SDPO and SDFT: the distillation loss of TRL 1.16 in one pass of the engine.

Replaced is the loss itself; the forward passes return `DeferredLogits`, and what else TRL does
with logits (log-probs of the rollouts, the policy-gradient term) is its own code on the engine's
log-probs. Formulas: trl/experimental/sdpo/loss_utils.py, observed behaviour.

Shape letters: B sequences, L completion tokens, C tokens of a chunk.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from sdkernels.engine import HiddenTeacher, TokenStats, token_loss
from sdkernels.engine.stats import Tokens
from sdkernels.integrations.deferred import DeferredLogits, deferring
from sdkernels.integrations.undo import swapped
from sdkernels.recipes.divergence import divergence, engine_keywords
from sdkernels.recipes.surrogate import truncated_weight

Base: Any = Any if TYPE_CHECKING else object

SUPPORTS = {"full_logits": "full", "topk_logits": "student_topk", "sampled_token": "sampled"}


class SDFTEngine(Base):  # type: ignore[misc, unused-ignore]
    """Methods put in front of `SDFTTrainer`'s."""

    REPLACED = ("_compute_self_distillation_loss",)
    DEFERS = True

    @staticmethod
    def models_of(trainer: Any) -> list[Any]:
        """The models whose heads the loss applies."""
        return [trainer.model, trainer.teacher_model]

    @staticmethod
    def refusals(trainer: Any) -> Iterator[str]:
        """Options that can't be honoured, and what to do."""
        args = trainer.args
        if trainer.use_teacher_server:
            yield (
                "use_teacher_server=True: log-probs come from a vLLM server; set it to False for a "
                "local teacher"
            )
        if args.distillation_mode not in SUPPORTS:
            yield (
                f"distillation_mode={args.distillation_mode!r}: accepted are "
                + ", ".join(map(repr, SUPPORTS))
            )
        if args.distillation_mode == "topk_logits" and args.distillation_topk is None:
            yield "distillation_topk=None with distillation_mode='topk_logits': set a number"
        if args.distillation_mode == "sampled_token" and args.distillation_alpha != 1.0:
            yield (
                f"distillation_alpha={args.distillation_alpha} with "
                "distillation_mode='sampled_token', which is KL(S||T): set it to 1.0"
            )

    def _forward_logits(self, model: Any, *args: Any, **kwargs: Any) -> DeferredLogits:
        with deferring(model, self.accelerator.autocast):
            found: DeferredLogits = super()._forward_logits(model, *args, **kwargs)
        return found

    def _compute_rollout_logps(self, **batch: Tensor) -> Tensor | None:
        with _engine_logps(self, batch["completion_mask"]):
            found: Tensor | None = super()._compute_rollout_logps(**batch)
        return found

    def _compute_self_distillation_loss(
        self, model: Any, inputs: Any, distillation_logits: Any
    ) -> Tensor:
        """Mean over sequences of the mean over their tokens, empty sequences counted as 0, as TRL
        has it; logs the mean over tokens.
        """
        self._engine_reached()
        student, teacher = distillation_logits.student_logits, distillation_logits.teacher_logits
        dtype = torch.promote_types(student.hidden.dtype, torch.float32)
        mask_BL = distillation_logits.loss_mask.to(dtype)
        lengths_B1 = mask_BL.sum(-1, keepdim=True).clamp(min=1)
        tokens = {"weight": mask_BL / (lengths_B1 * mask_BL.shape[0])}
        old_logp_BL = inputs.get("old_per_token_logps")
        if self.args.distillation_is_clip is not None and old_logp_BL is not None:
            tokens["old_logp"] = old_logp_BL
        per_token, engine = _per_token(self.args)
        loss, stats = token_loss(
            student.hidden,
            student.head,
            lambda s, tok: tok.weight * per_token(s, tok),
            targets=distillation_logits.completion_ids,
            teacher=HiddenTeacher(teacher.hidden, teacher.head),
            tokens=tokens,
            mask=mask_BL.bool(),
            temperature=student.temperature,
            **engine,
        )
        with torch.no_grad():
            seen_BL = per_token(stats, Tokens(tokens)).masked_fill(mask_BL == 0, 0.0)
            mean = seen_BL.sum() / mask_BL.sum().clamp(min=1)
        self._log_self_distillation_metric(
            "train" if model.training else "eval", self.accelerator.gather(mean).mean().item()
        )
        return loss


class SDPOEngine(SDFTEngine):
    """Methods put in front of `SDPOTrainer`'s, which has a policy-gradient term as well."""

    def _compute_policy_loss(self, inputs: Any, student_logits: DeferredLogits) -> Tensor:
        with _engine_logps(self, inputs["completion_mask"]):
            found: Tensor = super()._compute_policy_loss(inputs, student_logits)
        return found


def _per_token(args: Any) -> tuple[Callable[[TokenStats, Tokens], Tensor], dict[str, Any]]:
    """The loss of a token before aggregation, `[C]`, and the keywords of its statistics."""
    alpha, support = args.distillation_alpha, SUPPORTS[args.distillation_mode]

    def per_token(s: TokenStats, tok: Tokens) -> Tensor:
        if support == "sampled":
            # A surrogate: the gradient is that of KL(S||T) in expectation, the value is not.
            loss = (s.logp.detach() - s.teacher_logp) * s.logp
        else:
            loss = divergence(s, alpha, support, args.distillation_add_tail)
        if not hasattr(tok, "old_logp"):
            return loss
        return truncated_weight(s.logp, tok.old_logp, args.distillation_is_clip) * loss

    if support == "sampled":
        return per_token, {}
    return per_token, engine_keywords(alpha, support, args.distillation_topk)


def _engine_logps(trainer: Any, mask_BL: Tensor) -> Any:
    """Inside this block the trainer's module takes log-probs of deferred logits by the engine."""
    module = next(
        sys.modules[cls.__module__]
        for cls in type(trainer).__mro__
        if cls.__name__ in ("SDPOTrainer", "SDFTTrainer") and "_forward_logits" in vars(cls)
    )

    def selective_log_softmax(logits: DeferredLogits, ids_BL: Tensor) -> Tensor:
        trainer._engine_reached()
        return logits.logp(ids_BL, mask_BL.bool())

    return swapped(module, "selective_log_softmax", selective_log_softmax)
