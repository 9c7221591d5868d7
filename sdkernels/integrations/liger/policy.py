"""The policy losses behind `LigerFusedLinearGRPOLoss`, on log-probs that exist already.

`cfg` is the module with its settings. The same function serves a chunk of tokens (`[C]` tensors,
ratio per token) and a whole batch (`[B, L]`, ratio per token or sequence).

Sources: GRPO 2402.03300, GSPO 2507.18071 (ratio per sequence), CISPO 2506.13585, SAPO 2511.20347,
DAPO 2503.14476, Dr. GRPO 2503.20783; behaviour of Liger 0.8.5, against which they are tested.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sdkernels.engine.stats import Tokens

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
LOSS_TYPES = (*CLIPPED, "cispo", "sapo", "vespo")
LEVELS = ("token", "sequence")
# VESPO holds logarithms of ratios within these, in nats.
LOG_RATIO_LIMIT_NATS = 20.0
LOG_WEIGHT_FLOOR_NATS = math.log(1e-8)


def check(cfg: Any) -> None:
    """Raise ValueError for settings that no loss accepts."""
    for name, accepted in (("loss_type", LOSS_TYPES), ("importance_sampling_level", LEVELS)):
        value = getattr(cfg, name)
        if value not in accepted:
            raise ValueError(f"{name}={value!r}: accepted are {', '.join(map(repr, accepted))}")
    if cfg.importance_sampling_level == "sequence" and cfg.loss_type not in CLIPPED:
        raise ValueError(
            f"importance_sampling_level='sequence' with loss_type={cfg.loss_type!r}: its ratio is "
            "per token; set importance_sampling_level='token'"
        )
    for name in ("sapo_temperature_pos", "sapo_temperature_neg", "delta"):
        value = getattr(cfg, name)
        if value is not None and not value > 0:
            raise ValueError(f"{name}={value!r}: expected a number above 0")
    if cfg.loss_type == "dr_grpo" and cfg.max_completion_length is None:
        raise ValueError("loss_type='dr_grpo' needs max_completion_length, in tokens")


def acts_token_by_token(cfg: Any, tokens: dict[str, Tensor]) -> bool:
    """Whether a token's loss depends on its own log-prob alone.

    A ratio per sequence is 1 on-policy, but its gradient still is a mean over the sequence.
    """
    if cfg.importance_sampling_level == "sequence":
        return False
    return cfg.loss_type != "vespo" or "old_logp" not in tokens


def per_token(cfg: Any, logp: Tensor, tok: Any) -> tuple[Tensor, Tensor | None]:
    """(loss, KL estimate or None) of each token; with a ratio per sequence perhaps `[B, 1]`."""
    log_weight = _log_weight(logp, tok)
    ratio = log_weight.exp()
    adv = tok.adv[:, :1] if log_weight.dim() == 2 and log_weight.shape[1] == 1 else tok.adv
    if cfg.loss_type == "vespo":
        loss = -tok.gamma * adv * logp
    elif cfg.loss_type == "cispo":
        loss = -ratio.clamp(max=cfg.epsilon_high).detach() * adv * logp
    elif cfg.loss_type == "sapo":
        positive, negative = cfg.sapo_temperature_pos, cfg.sapo_temperature_neg
        steep = torch.where(adv > 0, positive, negative).to(ratio.dtype)
        loss = -torch.sigmoid(steep * (ratio - 1)) * 4 / steep * adv
    else:
        bounded = ratio if cfg.delta is None else ratio.clamp(max=cfg.delta)
        clipped = ratio.clamp(1 - cfg.epsilon_low, 1 + cfg.epsilon_high)
        loss = -torch.minimum(bounded * adv, clipped * adv)
    if hasattr(tok, "is_ratio") and cfg.loss_type != "vespo":
        loss = loss * tok.is_ratio
    if cfg.beta == 0:
        return loss, None
    gap = tok.ref_logp - logp if hasattr(tok, "ref_logp") else logp.detach() - logp
    estimate = gap.exp() - gap - 1
    if cfg.use_bias_correction_kl:
        estimate = estimate * ratio
    return loss + cfg.beta * estimate, estimate


def vespo_weights(
    cfg: Any, log_ratio_BL: Tensor, adv_B: Tensor, correction: Tensor | None
) -> Tensor:
    """e^l w^k e^(-l w) `[B, L]` for the ratio w of a sequence, k and l by the advantage's sign.

    `log_ratio_BL` is 0 where a token does not count; `correction` `[B, L]` or `[B, 1]` holds
    further factors of w, one a token or one a sequence.
    """
    limit, floor = LOG_RATIO_LIMIT_NATS, LOG_WEIGHT_FLOOR_NATS
    log_w_B1 = log_ratio_BL.clamp(-limit, limit).sum(1, keepdim=True)
    if correction is not None:
        log_w_B1 = log_w_B1 + correction.log().clamp(floor, limit).sum(1, keepdim=True)
    log_w_B1 = log_w_B1.clamp(floor, limit)
    gains_B1 = adv_B[:, None] >= 0
    k = torch.where(gains_B1, cfg.vespo_k_pos, cfg.vespo_k_neg)
    rate = torch.where(gains_B1, cfg.vespo_lambda_pos, cfg.vespo_lambda_neg).clamp(min=1e-4)
    gamma_B1 = (rate + k * log_w_B1 - rate * log_w_B1.exp()).exp()
    return gamma_B1.nan_to_num(0.0, 0.0, 0.0).to(log_ratio_BL.dtype).expand_as(log_ratio_BL)


def weights(cfg: Any, mask_BL: Tensor, num_items: Tensor | int | None) -> Tensor:
    """`[B, L]` factors whose sum over per-token losses is the loss."""
    lengths_B1, total = mask_BL.sum(1, keepdim=True), mask_BL.sum().clamp(min=1)
    if cfg.loss_type in ("grpo", "sapo"):
        return mask_BL / (lengths_B1.clamp(min=1) * mask_BL.shape[0])
    if cfg.loss_type == "bnpo":
        return mask_BL / total
    if cfg.loss_type == "dr_grpo":
        return mask_BL / (mask_BL.shape[0] * cfg.max_completion_length)
    if cfg.loss_type == "luspo":
        # Liger's mean runs over masked positions too.
        return (lengths_B1 / mask_BL.numel()).expand_as(mask_BL)
    return mask_BL / _items(mask_BL, num_items)


def metrics(
    cfg: Any, logp_BL: Tensor, tokens: dict[str, Tensor], mask_BL: Tensor
) -> tuple[Tensor, ...]:
    """Mean KL estimate (with `beta`), share of tokens at a clip that the advantage pushes on."""
    with torch.no_grad():
        tok = Tokens(tokens)
        _, estimate = per_token(cfg, logp_BL, tok)
        ratio, adv = _log_weight(logp_BL, tok).exp(), tokens["adv"]
        low, high = torch.zeros_like(mask_BL).bool(), torch.zeros_like(mask_BL).bool()
        if cfg.loss_type in CLIPPED:
            low, high = ratio < 1 - cfg.epsilon_low, ratio > 1 + cfg.epsilon_high
        elif cfg.loss_type == "cispo":
            high = ratio > cfg.epsilon_high
        clipped = ((low & (adv < 0)) | (high & (adv > 0))).to(mask_BL.dtype)
        total = mask_BL.sum().clamp(min=1)
        share = (clipped * mask_BL).sum() / total
        return (share,) if estimate is None else ((estimate * mask_BL).sum() / total, share)


def _log_weight(logp: Tensor, tok: Any) -> Tensor:
    if hasattr(tok, "log_weight"):
        return tok.log_weight
    return logp - (tok.old_logp if hasattr(tok, "old_logp") else logp.detach())


def _items(mask_BL: Tensor, num_items: Tensor | int | None) -> Tensor:
    """Tokens of the step per process, at least 1."""
    world = dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1
    if num_items is not None:
        items = torch.as_tensor(num_items, device=mask_BL.device, dtype=mask_BL.dtype)
    else:
        items = mask_BL.sum()
        if world > 1:
            dist.all_reduce(items)
    return (items / world).clamp(min=1)
