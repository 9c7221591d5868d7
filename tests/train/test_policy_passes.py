"""What is recorded of the policy that sampled."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from helpers.train_rows import CPU, row

from sdkernels import recipes
from sdkernels.engine import TokenStats
from sdkernels.train.batch import Row, collate, mask_rows
from sdkernels.train.policy_passes import PolicyPasses
from sdkernels.train.rollout_batch import RolloutBatch
from sdkernels.train.step_metrics import Timers


def recorded(*rows: Row) -> tuple[Row, ...]:
    """The rows after `record`, of a policy that gives every token -1 nats."""

    def statistics(model, batch):
        return TokenStats(
            dict.fromkeys(("logp", "entropy"), torch.full(batch.target_N.shape, -1.0))
        )

    step_loss = SimpleNamespace(recipe=recipes.get("grpo"), gate=None, statistics=statistics)
    builder = SimpleNamespace(
        mask=lambda rows: mask_rows(rows, need_teacher=False, skip_truncated=False, skip_first=0)
    )
    passes = PolicyPasses(
        step_loss,
        lambda function: function(None),
        lambda rows: collate(rows, 0, CPU, with_teacher=False),
    )
    passes.record(RolloutBatch(0, [list(rows)], 1, passes=2), builder, Timers(CPU))
    return rows


def test_log_probs_that_the_sampler_gave_stay():
    given = torch.tensor([-0.5, -0.25])
    (kept,) = recorded(row([1], [10, 11], old_logp=given))
    assert kept.old_logp is given


def test_what_is_recorded_is_no_part_of_the_micro_batch():
    """A slice would take the whole of it into every checkpoint."""
    rows = recorded(row([1], [10, 11]), row([1], [12, 13, 14]))
    for each, length in zip(rows, (2, 3), strict=True):
        assert each.old_logp.tolist() == [-1.0] * length
        assert each.old_logp.untyped_storage().nbytes() == 4 * length
