"""Switches that look at whole optimisation steps: AntiSD's gate, DASD's entropy ceiling."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sdkernels.engine import TokenStats
from sdkernels.gates import Schmitt
from sdkernels.train.batch import MicroBatch
from sdkernels.train.token_metrics import told

STATE = "step_switch."


class StepSwitches:
    """Feeds Schmitt gates with the mean entropies of the steps, and keeps their state.

    A step is judged by the entropies of the steps before it, which costs no pass of its own.

    Args:
        gate: the recipe's gate; one that is a `Schmitt` watches the teacher's entropy.
        entropy_ceiling: multiple of the student's entropy in the first steps above which a step is
            too hot; hot no longer half-way back.
    """

    def __init__(self, gate: Any, entropy_ceiling: float | None) -> None:
        self._watching: dict[str, Schmitt] = {}
        if isinstance(gate, Schmitt):
            self._watching["teacher_entropy"] = gate
        self._ceiling: Schmitt | None = None
        if entropy_ceiling is not None:
            half_way = 0.5 * (1.0 + entropy_ceiling)
            self._ceiling = Schmitt(entropy_ceiling, half_way)
            self._watching["entropy"] = self._ceiling
        self._sums: dict[str, Tensor] = {}

    @property
    def too_hot(self) -> bool:
        """Whether the student's entropy is above the ceiling."""
        return self._ceiling is not None and not self._ceiling.is_on

    def start_step(self) -> None:
        """Forget what an abandoned step left."""
        self._sums.clear()

    def observe(self, batch: MicroBatch, stats: TokenStats) -> None:
        """Add the tokens of a micro-batch to the step's mean: for the teacher's entropy those whose
        teacher had a context, as in the metrics, for the student's all that count.
        """
        for name in self._watching:
            mask_N = told(batch) if name == "teacher_entropy" else batch.keep_N
            total = torch.where(mask_N, stats[name].detach(), 0.0).sum(dtype=torch.float32)
            part = torch.stack([total, mask_N.sum().float()])
            self._sums[name] = self._sums[name] + part if name in self._sums else part

    def after_step(self, over_ranks: Callable[[Tensor], Tensor]) -> None:
        """Update the gates, once the optimiser has made a step. Every rank has to call it."""
        for name, gate in self._watching.items():
            if name not in self._sums:
                continue
            total, count = over_ranks(self._sums[name]).tolist()
            if count and math.isfinite(total):
                gate.update(max(0.0, total / count))
        self._sums.clear()

    def state(self) -> dict[str, Tensor]:
        """Tensors for a checkpoint."""
        return {STATE + name: _packed(gate) for name, gate in self._watching.items()}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave; a checkpoint without it leaves the gates as new."""
        for name, gate in self._watching.items():
            if STATE + name in state:
                is_on, *warmup = state[STATE + name].tolist()
                gate.load_state_dict({"is_on": is_on, "warmup_nats": warmup})


def split_state(state: dict[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Tensors of a checkpoint that are not the switches', and those that are."""
    ours = {name: tensor for name, tensor in state.items() if name.startswith(STATE)}
    return {name: tensor for name, tensor in state.items() if name not in ours}, ours


def _packed(gate: Schmitt) -> Tensor:
    state = gate.state_dict()
    return torch.tensor([float(state["is_on"]), *state["warmup_nats"]], dtype=torch.float64)
