"""`LigerFusedLinearCrossEntropyLoss`: cross-entropy with Liger's options.

With weights c over the vocabulary (1 without `ce_weight`), smoothing a and label y:

    loss = (1 - a) c_y (lse - z_y) + a / V sum_v c_v (lse - z_v) + lse_square_scale lse^2

The sum of logits is hidden . (c W) + c b: one vector of the size of a hidden state, no logits.

Shape letters: T tokens, D hidden, V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from sdkernels.engine import LMHead, TokenStats, token_loss, token_stats
from sdkernels.engine.stats import Tokens

REDUCTIONS = ("mean", "sum", "none")


@dataclass
class CrossEntropyOutput:
    """What Liger returns when more than the loss is asked for; None for what is not."""

    loss: Tensor
    z_loss: Tensor | None = None
    token_accuracy: Tensor | None = None
    predicted_tokens: Tensor | None = None


class LigerFusedLinearCrossEntropyLoss(nn.Module):
    """Cross-entropy of hidden states under a head, without logits.

    Args:
        ce_weight: `[V]` weights of the classes.
        ignore_index: label of tokens that are left out.
        lse_square_scale: factor of the z-loss lse^2.
        label_smoothing: share of the label's mass spread over the vocabulary, 0 to 1.
        reduction: "mean" (by the weights of the labels; the z-loss by their number), "sum", "none".
        softcap: c of c * tanh(logits / c).
        return_z_loss, return_token_accuracy, return_predicted_tokens: return a
            `CrossEntropyOutput`; only its `loss` has a gradient.
        accum_dtype: None or float32: gradients of the weight are summed in float32 either way.
        use_token_scaling: multiply each token's loss by its own probability, as a constant.

    Raises:
        ValueError: a value out of range, another `accum_dtype`, or smoothing together with a
            softcap (the sum of capped logits needs the logits).
    """

    def __init__(
        self,
        ce_weight: Tensor | None = None,
        ignore_index: int = -100,
        lse_square_scale: float = 0.0,
        label_smoothing: float = 0.0,
        reduction: str = "mean",
        softcap: float | None = None,
        return_z_loss: bool = False,
        accum_dtype: torch.dtype | None = None,
        use_token_scaling: bool = False,
        return_token_accuracy: bool = False,
        return_predicted_tokens: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= label_smoothing <= 1:
            raise ValueError(f"label_smoothing={label_smoothing!r}: expected a number from 0 to 1")
        if reduction not in REDUCTIONS:
            raise ValueError(
                f"reduction={reduction!r}: accepted are {', '.join(map(repr, REDUCTIONS))}"
            )
        if label_smoothing and softcap is not None:
            raise ValueError(
                f"label_smoothing={label_smoothing!r} with softcap={softcap!r}: the sum of capped "
                "logits can't be had without logits; leave one of them out"
            )
        if accum_dtype not in (None, torch.float32):
            raise ValueError(
                f"accum_dtype={accum_dtype}: weight gradients are summed in float32 (float64 for "
                "float64 inputs); pass torch.float32 or None"
            )
        self.ce_weight = ce_weight
        self.ignore_index = ignore_index
        self.lse_square_scale = lse_square_scale
        self.label_smoothing = label_smoothing
        self.reduction = reduction
        self.softcap = softcap
        self.return_z_loss = return_z_loss
        self.accum_dtype = accum_dtype
        self.use_token_scaling = use_token_scaling
        self.return_token_accuracy = return_token_accuracy
        self.return_predicted_tokens = return_predicted_tokens

    def forward(
        self, lin_weight: Tensor, _input: Tensor, target: Tensor, bias: Tensor | None = None
    ) -> Tensor | CrossEntropyOutput:
        """Loss of hidden states `_input` `[T, D]`, head `[V, D]`, labels `target` `[T]`."""
        mask_T = target != self.ignore_index
        tokens = self._coefficients(lin_weight, target, mask_T)
        wants_ids = self.return_token_accuracy or self.return_predicted_tokens
        settings: dict[str, Any] = {
            "targets": target,
            "mask": mask_T,
            "topk": 1 if wants_ids else None,
        }
        head = LMHead(lin_weight, bias, softcap=self.softcap)
        if self.reduction == "none":
            stats = token_stats(_input, head, **settings)
            loss = self._per_token(stats, Tokens(tokens))
            loss = loss.masked_fill(~mask_T, 0.0)
        else:
            loss, stats = token_loss(_input, head, self._per_token, tokens=tokens, **settings)
        if self.label_smoothing:
            # A coefficient of 0 would not do: 0 * NaN is NaN, in the weight's gradient too.
            kept_TD = _input.masked_fill(~mask_T[:, None], 0.0)
            smooth_T = self._sums_of_logits(lin_weight, kept_TD, bias) * -tokens["smooth"]
            if self.use_token_scaling:
                smooth_T = smooth_T * stats.logp.detach().exp()
            loss = loss + (smooth_T if self.reduction == "none" else smooth_T.sum())
        if not (self.return_z_loss or wants_ids):
            return loss
        return self._output(loss, stats, tokens, target, mask_T)

    def _coefficients(
        self, weight_VD: Tensor, target_T: Tensor, mask_T: Tensor
    ) -> dict[str, Tensor]:
        """Per-token factors of the label's term, the smoothing and the z-loss, reduction
        included.
        """
        dtype = torch.promote_types(weight_VD.dtype, torch.float32)
        label_T = mask_T.to(dtype)
        if self.ce_weight is not None:
            vocab = weight_VD.shape[0]
            if self.ce_weight.shape != (vocab,):
                raise ValueError(
                    f"ce_weight: expected shape [V] = [{vocab}], got {list(self.ce_weight.shape)}"
                )
            label_T = label_T * self.ce_weight.to(dtype)[target_T.masked_fill(~mask_T, 0)]
        ones_T = mask_T.to(dtype)
        if self.reduction == "mean":
            weight, count = label_T.sum(), mask_T.sum()
            # Over no token the loss is 0.
            weight = torch.where(count > 0, weight, torch.ones_like(weight))
            count = count.clamp(min=1)
        else:
            weight = count = torch.ones((), dtype=dtype, device=target_T.device)
        vocab = weight_VD.shape[0]
        smooth_T = self.label_smoothing / vocab * ones_T / weight
        mass = vocab if self.ce_weight is None else self.ce_weight.sum(dtype=dtype)
        return {
            "label": (1 - self.label_smoothing) * label_T / weight,
            "smooth": smooth_T,
            "lse": smooth_T * mass,
            "z": self.lse_square_scale * ones_T / count,
        }

    def _per_token(self, s: TokenStats, tok: Tokens) -> Tensor:
        """Everything but the sum of logits, `[C]`."""
        loss = tok.z * s.lse**2 + tok.lse * s.lse - tok.label * s.logp
        return loss * s.logp.detach().exp() if self.use_token_scaling else loss

    def _sums_of_logits(
        self, weight_VD: Tensor, hidden_TD: Tensor, bias_V: Tensor | None
    ) -> Tensor:
        """sum_v c_v z_v of each token, `[T]`."""
        dtype = torch.promote_types(weight_VD.dtype, torch.float32)
        if self.ce_weight is None:
            direction_D = weight_VD.sum(0, dtype=dtype)
            offset = 0.0 if bias_V is None else bias_V.sum(dtype=dtype)
        else:
            direction_D = (self.ce_weight.to(weight_VD.dtype) @ weight_VD).to(dtype)
            offset = 0.0 if bias_V is None else self.ce_weight.to(dtype) @ bias_V.to(dtype)
        return hidden_TD.to(dtype) @ direction_D + offset

    def _output(
        self,
        loss: Tensor,
        stats: TokenStats,
        tokens: dict[str, Tensor],
        target_T: Tensor,
        mask_T: Tensor,
    ) -> CrossEntropyOutput:
        output = CrossEntropyOutput(loss)
        with torch.no_grad():
            if self.return_z_loss:
                z_T = tokens["z"] * stats.lse.detach() ** 2
                if self.use_token_scaling:
                    z_T = z_T * stats.logp.exp()
                output.z_loss = z_T if self.reduction == "none" else z_T.sum()
            if self.return_token_accuracy or self.return_predicted_tokens:
                predicted_T = stats.topk_ids.squeeze(-1).masked_fill(~mask_T, -1)
                if self.return_predicted_tokens:
                    output.predicted_tokens = predicted_T
                if self.return_token_accuracy:
                    hit_T = ((predicted_T == target_T) & mask_T).float()
                    average = hit_T.sum() / mask_T.sum().clamp(min=1)
                    output.token_accuracy = hit_T if self.reduction == "none" else average
        return output
