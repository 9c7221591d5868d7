"""`LigerFusedLinearGRPOLoss`: the policy losses of Liger's chunked GRPO on the engine.

Losses that look at one token at a time take one pass (6 T D V with a trainable head); those with a
ratio per sequence take the log-probs first (8 T D V).

Shape letters: B sequences, L tokens of a sequence, C tokens of a chunk, D hidden, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from sdkernels.engine import LMHead, token_loss
from sdkernels.engine.stats import Tokens
from sdkernels.integrations.liger import policy
from sdkernels.ops import linear_logprob


class LigerFusedLinearGRPOLoss(nn.Module):
    """GRPO and relatives; arguments as in Liger 0.8.5.

    Args:
        beta: factor of the KL estimate to the reference model.
        compiled, chunk_size: accepted, without effect.
        use_ref_model: whether the reference's log-probs or hidden states are given.
        epsilon_low, epsilon_high, delta: clips of the ratio; "cispo" uses `epsilon_high` alone.
        loss_type: one of `policy.LOSS_TYPES`.
        max_completion_length: denominator of "dr_grpo", in tokens.
        importance_sampling_level: "token" or "sequence".
        sapo_temperature_pos, sapo_temperature_neg: of "sapo".
        temperature: divides the logits.
        use_bias_correction_kl: multiply the KL estimate by the ratio.
        vespo_k_pos, vespo_lambda_pos, vespo_k_neg, vespo_lambda_neg: of "vespo".

    Raises:
        ValueError: an unknown loss or level, or values out of range.
    """

    def __init__(
        self,
        beta: float = 0.04,
        compiled: bool = True,
        use_ref_model: bool = True,
        chunk_size: int = 1,
        epsilon_low: float = 0.2,
        epsilon_high: float = 0.2,
        loss_type: str = "dapo",
        max_completion_length: int | None = None,
        importance_sampling_level: str = "token",
        sapo_temperature_pos: float = 1.0,
        sapo_temperature_neg: float = 1.05,
        temperature: float = 1.0,
        delta: float | None = None,
        use_bias_correction_kl: bool = False,
        vespo_k_pos: float = 2.0,
        vespo_lambda_pos: float = 3.0,
        vespo_k_neg: float = 3.0,
        vespo_lambda_neg: float = 2.0,
    ) -> None:
        super().__init__()
        self.beta = beta
        self.compiled = compiled
        self.use_ref_model = use_ref_model
        self.chunk_size = chunk_size
        self.epsilon_low = epsilon_low
        self.epsilon_high = epsilon_high
        self.loss_type = loss_type
        self.max_completion_length = max_completion_length
        self.importance_sampling_level = importance_sampling_level
        self.sapo_temperature_pos = sapo_temperature_pos
        self.sapo_temperature_neg = sapo_temperature_neg
        self.temperature = temperature
        self.delta = delta
        self.use_bias_correction_kl = use_bias_correction_kl
        self.vespo_k_pos = vespo_k_pos
        self.vespo_lambda_pos = vespo_lambda_pos
        self.vespo_k_neg = vespo_k_neg
        self.vespo_lambda_neg = vespo_lambda_neg
        policy.check(self)

    def forward(
        self,
        _input: Tensor,
        lin_weight: Tensor,
        selected_token_ids: Tensor,
        attention_mask: Tensor,
        advantages: Tensor,
        bias: Tensor | None = None,
        ref_per_token_logps: Tensor | None = None,
        old_per_token_logps: Tensor | None = None,
        ref_input: Tensor | None = None,
        ref_weight: Tensor | None = None,
        ref_bias: Tensor | None = None,
        vllm_is_ratio: Tensor | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Loss, and as metrics the mean KL estimate (where `beta` is not 0) and the share of
        clipped tokens.

        Args:
            _input: `[B, L, D]` hidden states that predict `selected_token_ids` `[B, L]`.
            attention_mask: `[B, L]`, 1 where a token counts.
            advantages: `[B]`.
            vllm_is_ratio: `[B, L]`, `[B, 1]` or `[B]` factors of the policy term.
            num_items_in_batch: tokens of the whole step, for "dapo", "cispo" and "vespo".
        """
        head = LMHead(lin_weight, bias)
        dtype = torch.promote_types(_input.dtype, torch.float32)
        mask_BL = attention_mask.to(dtype)
        keep_BL = None if self.loss_type == "luspo" else mask_BL.bool()
        reference_BL = None
        if self.use_ref_model:
            reference_BL = ref_per_token_logps
            if reference_BL is None:
                reference_BL = self._reference(
                    selected_token_ids, keep_BL, ref_input, ref_weight, ref_bias
                )
        weight_BL = policy.weights(self, mask_BL, num_items_in_batch)
        correction = vllm_is_ratio
        if correction is not None and correction.dim() == 1:
            correction = correction[:, None]
        fields = {"adv": advantages[:, None], "old_logp": old_per_token_logps}
        fields |= {"ref_logp": reference_BL, "is_ratio": correction}
        tokens: dict[str, Tensor] = {
            name: value.to(dtype).expand_as(mask_BL)
            for name, value in fields.items()
            if value is not None
        }
        shared: dict[str, Any] = {
            "targets": selected_token_ids,
            "mask": keep_BL,
            "temperature": self.temperature,
        }
        if policy.acts_token_by_token(self, tokens):
            if self.loss_type == "vespo":
                zeros_BL = torch.zeros_like(mask_BL)
                tokens["gamma"] = policy.vespo_weights(self, zeros_BL, advantages, correction)
            loss, stats = token_loss(
                _input,
                head,
                lambda s, tok: tok.weight * policy.per_token(self, s.logp, tok)[0],
                tokens=tokens | {"weight": weight_BL},
                **shared,
            )
            return loss, policy.metrics(self, stats.logp, tokens, mask_BL)
        logp_BL = linear_logprob(_input, head, **shared)
        assert isinstance(logp_BL, Tensor)
        log_ratio_BL = (logp_BL - tokens.get("old_logp", logp_BL.detach())) * mask_BL
        if self.loss_type == "vespo":
            tokens["gamma"] = policy.vespo_weights(
                self, log_ratio_BL.detach(), advantages, correction
            )
        else:
            lengths_B1 = mask_BL.sum(1, keepdim=True).clamp(min=1)
            tokens["log_weight"] = log_ratio_BL.sum(1, keepdim=True) / lengths_B1
        loss_BL, _ = policy.per_token(self, logp_BL, Tokens(tokens))
        loss = (loss_BL * weight_BL).sum()
        return loss, policy.metrics(self, logp_BL.detach(), tokens, mask_BL)

    def _reference(
        self,
        ids_BL: Tensor,
        keep_BL: Tensor | None,
        hidden: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
    ) -> Tensor:
        if hidden is None or weight is None:
            raise ValueError(
                "use_ref_model=True: pass ref_per_token_logps, or ref_input and ref_weight; or set "
                "use_ref_model=False"
            )
        with torch.no_grad():
            found = linear_logprob(
                hidden,
                LMHead(weight, bias),
                ids_BL,
                mask=keep_BL,
                temperature=self.temperature,
            )
        assert isinstance(found, Tensor)
        return found
