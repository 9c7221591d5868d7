"""Drift and clipped shares, against counts by hand."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sdkernels import recipes
from sdkernels.train.ratio_metrics import add_ratio_metrics
from sdkernels.train.step_metrics import StepMetrics


def taken(recipe, *, fresh=True, sampler=None, old=(0.0, -1.0, -1.0, -9.0)):
    """Current log-probs -0.5, -1, -1.5, -3; the last token is not in the loss."""
    batch = SimpleNamespace(
        keep_N=torch.tensor([True, True, True, False]),
        old_logp_N=None if old is None else torch.tensor(old),
        sampler_logp_N=None if sampler is None else torch.tensor(sampler),
    )
    stats = SimpleNamespace(logp=torch.tensor([-0.5, -1.0, -1.5, -3.0]))
    metrics = StepMetrics()
    add_ratio_metrics(metrics, batch, stats, recipe, fresh=fresh)
    return metrics.take(SimpleNamespace(num_processes=1))


def test_shares_beyond_the_clips_of_the_recipe():
    line = taken(recipes.get("grpo", clip_low=0.2, clip_high=0.5))
    assert line["policy_drift"] == pytest.approx((0.5 + 0 + 0.5) / 3)  # E[log old - log now]
    assert line["clip_low_share"] == pytest.approx(2 / 3)
    assert line["clip_high_share"] == 0
    assert line["is_clip_share"] is None
    line = taken(recipes.get("sdpo", is_clip=1.5), old=(-2.0, -1.0, -1.0, -9.0))
    assert line["is_clip_share"] == pytest.approx(1 / 3)
    assert line["clip_low_share"] is None


def test_nothing_without_old_log_probs_or_a_ratio():
    for line in (taken(recipes.get("grpo"), old=None), taken(recipes.get("sdft"))):
        assert line["policy_drift"] is None
        assert line["clip_low_share"] is None


def test_the_sampler_is_compared_while_the_weights_are_those_it_had():
    sampler = (-0.5, -2.0, -1.0, 7.0)
    line = taken(recipes.get("sdft"), sampler=sampler)
    assert line["sampler_gap_abs"] == pytest.approx(1.5 / 3)
    assert taken(recipes.get("sdft"), sampler=sampler, fresh=False)["sampler_gap_abs"] is None
