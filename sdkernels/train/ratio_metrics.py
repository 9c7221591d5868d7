"""How far the weights have moved from those that sampled: drift, and ratios beyond the clips."""

from __future__ import annotations

import torch
from torch import Tensor

from sdkernels.engine import TokenStats
from sdkernels.recipes import Recipe
from sdkernels.train.batch import MicroBatch
from sdkernels.train.step_metrics import StepMetrics


def add_ratio_metrics(
    metrics: StepMetrics, batch: MicroBatch, stats: TokenStats, recipe: Recipe, *, fresh: bool
) -> None:
    """Add a micro-batch's, over the tokens of its loss.

    `policy_drift` is the mean of old minus current log-prob (nats), an estimate of KL(old||now);
    `sampler_gap_abs` the mean distance between our log-probs and those that the sampler gave.

    Args:
        recipe: its clips are those whose share is counted.
        fresh: whether the weights are still those that the rollouts were sampled for.
    """
    keep = batch.keep_N
    count = keep.sum()

    def total(name: str, values_N: Tensor) -> None:
        metrics.add(name, torch.where(keep, values_N, 0.0).sum().double(), count)

    if batch.sampler_logp_N is not None and fresh:
        total("sampler_gap_abs", (stats.logp - batch.sampler_logp_N).abs())
    if "old_logp" in recipe.needs and batch.old_logp_N is not None:
        log_ratio_N = stats.logp - batch.old_logp_N
        total("policy_drift", -log_ratio_N)
        for name, beyond in _clips(recipe, log_ratio_N.exp()).items():
            total(name, beyond.float())


def _clips(recipe: Recipe, ratio_N: Tensor) -> dict[str, Tensor]:
    """Which ratios lie beyond the recipe's clips. PPO's clip stops the gradient of those whose
    advantage points further out; that of an importance weight always acts.
    """
    low, high, weight = (recipe.config.get(name) for name in ("clip_low", "clip_high", "is_clip"))
    beyond = {}
    if low is not None:
        beyond["clip_low_share"] = ratio_N < 1 - low
    if high is not None:
        beyond["clip_high_share"] = ratio_N > 1 + high
    if weight is not None:
        beyond["is_clip_share"] = ratio_N > weight
    return beyond
