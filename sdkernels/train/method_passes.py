"""What a recipe needs for a whole optimisation step: schedules, switches, means over the batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sdkernels.train.batch import MicroBatch
from sdkernels.train.step_loss import StepLoss
from sdkernels.train.step_metrics import Timers


class MethodPasses:
    """Sets it in the micro-batches.

    Args:
        step_loss: knows recipe, teacher and switches.
        run: calls a function of the student without gradient, where its wrappers expect it.
        over_ranks: sum of a tensor over all ranks.
    """

    def __init__(
        self,
        step_loss: StepLoss,
        run: Callable[[Callable[[Any], Any]], Any],
        over_ranks: Callable[[Tensor], Tensor],
    ) -> None:
        self.step_loss = step_loss
        self.run = run
        self.over_ranks = over_ranks

    def prepare(self, batches: Sequence[MicroBatch], step: int, timers: Timers) -> None:
        """Set `strength` and, where the recipe normalises over the batch, `batch_mean`.

        The latter needs the teacher of all micro-batches before the loss of the first; its hidden
        states are kept for the loss, so no trunk runs twice. `step` counts from 0.
        """
        self.step_loss.switches.start_step()
        strength = self.strength(step)
        for batch in batches:
            batch.strength = strength
        if self.step_loss.recipe.batch_quantity is None:
            return
        sums = torch.zeros(2)
        for batch in batches:
            sums = sums + self._quantity(batch, timers).cpu()
        total, count = self.over_ranks(sums).tolist()
        for batch in batches:
            batch.batch_mean = total / count if count else None

    def strength(self, step: int) -> float:
        """Factor of the distillation in this step, in [0, 1]."""
        schedule = self.step_loss.recipe.schedule
        scheduled = 1.0 if schedule is None else schedule(step)
        return 0.0 if self.step_loss.switches.too_hot else scheduled

    def _quantity(self, batch: MicroBatch, timers: Timers) -> Tensor:
        sums: Tensor = self.run(lambda _: self.step_loss.quantity(batch, timers))
        return sums
