"""Passes of the student without gradient: what the policy that sampled says of its tokens, and gate
thresholds that span a whole optimiser step.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from sdkernels.engine import TokenStats
from sdkernels.train.batch import MicroBatch, Row, set_weights
from sdkernels.train.prepare import StepBuilder
from sdkernels.train.rollout_batch import RolloutBatch
from sdkernels.train.step_loss import StepLoss, Thresholds
from sdkernels.train.step_metrics import Timers


class PolicyPasses:
    """Runs them.

    Args:
        step_loss: knows the head, the temperatures and the gate.
        run: calls a function of the student without gradient, where its wrappers expect it.
        collate: tensors of rows.
    """

    def __init__(
        self,
        step_loss: StepLoss,
        run: Callable[[Callable[[Any], Any]], Any],
        collate: Callable[[list[Row]], MicroBatch],
    ) -> None:
        self.step_loss = step_loss
        self.run = run
        self.collate = collate

    def record(self, batch: RolloutBatch, builder: StepBuilder, timers: Timers) -> None:
        """Store log-probs and entropies of the current weights in the rows, where the recipe's
        ratio or the gate's threshold is going to need them.
        """
        recipe, gate = self.step_loss.recipe, self.step_loss.gate
        # What the sampler gave is the log-prob of the policy that really sampled.
        keep_logp = "old_logp" in recipe.needs and any(row.old_logp is None for row in batch.rows)
        keep_entropy = gate is not None and gate.needs_entropy
        if not (keep_logp or keep_entropy):
            return
        for rows in batch.micro_batches:
            mask_BL = builder.mask(rows)
            set_weights(rows, mask_BL, mask_BL.float())
            micro_batch = self.collate(rows)
            with timers.section("student_forward"):
                stats = self._statistics(micro_batch)
            lengths = [len(row.response_ids) for row in micro_batch.rows]
            logp, entropy = (
                stats[name].float().cpu().split(lengths) for name in ("logp", "entropy")
            )
            for i, row in enumerate(micro_batch.rows):
                # Clones: a slice would take the whole micro-batch into every checkpoint.
                if keep_logp:
                    row.old_logp = logp[i].clone()
                if keep_entropy:
                    row.entropy = entropy[i].clone()

    def thresholds_of_step(
        self, batches: list[MicroBatch], timers: Timers
    ) -> list[Thresholds | None]:
        """Thresholds of a gate for each micro-batch of an optimiser step; None where the loss finds
        them itself, because they depend on its own tokens only.
        """
        gate = self.step_loss.gate
        if gate is None:
            return [None] * len(batches)
        if not self.step_loss.gate_spans_step:
            return [
                None
                if batch.entropy_N is None
                else self.step_loss.thresholds(batch, batch.entropy_N)
                for batch in batches
            ]
        with timers.section("student_forward"):
            entropies = [self._entropies(batch) for batch in batches]
        width = max(entropy.shape[1] for entropy in entropies)

        def stack(parts: list[Tensor]) -> Tensor:
            return torch.cat([pad(part, (0, width - part.shape[1])) for part in parts])

        bound = gate.bind(
            stack(entropies), stack([batch.unpack(batch.keep_N) for batch in batches])
        )
        thresholds: list[Thresholds | None] = []
        start = 0
        for batch, entropy in zip(batches, entropies, strict=True):
            rows = slice(start, start + entropy.shape[0])
            thresholds.append(Thresholds.packed(bound, batch, rows))
            start = rows.stop
        return thresholds

    def _entropies(self, batch: MicroBatch) -> Tensor:
        if batch.entropy_N is not None:
            return batch.unpack(batch.entropy_N)
        return batch.unpack(self._statistics(batch).entropy)

    def _statistics(self, batch: MicroBatch) -> TokenStats:
        stats: TokenStats = self.run(lambda model: self.step_loss.statistics(model, batch))
        return stats
