"""What the teacher says of a micro-batch: its hidden states, and the contrasting teacher's
log-probs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdkernels.engine import HiddenTeacher, TokenStats, token_stats
from sdkernels.train.batch import MicroBatch
from sdkernels.train.forward import hidden_and_head
from sdkernels.train.sides import Side
from sdkernels.train.step_metrics import Timers
from sdkernels.train.teacher import TeacherWeights
from sdkernels.train.teacher_mix import mixed_teacher


@dataclass
class TeacherSays:
    """`second_logp_N`: mean over the contrasting prompts of the probability of each token, as a
    logarithm (nats); NaN where a row has none; None where the recipe asks for no contrast.
    """

    teacher: HiddenTeacher
    second_logp_N: Tensor | None = None


class TeacherPasses:
    """Runs the teacher, without gradient.

    Args:
        weights: whose weights.
        contrasts: whether the recipe compares with a second teacher.
        valid_vocab: number of vocabulary entries that are real, None for all.
        settings: those of the engine for plain statistics, `teacher_temperature` included.
    """

    def __init__(
        self,
        weights: TeacherWeights,
        *,
        contrasts: bool,
        valid_vocab: int | None,
        settings: dict[str, Any],
    ) -> None:
        self.weights = weights
        self.contrasts = contrasts
        self.valid_vocab = valid_vocab
        own = settings.get("teacher_temperature")
        self.settings = settings | {"teacher_temperature": None}
        if own is not None:
            self.settings["temperature"] = own

    def __call__(self, batch: MicroBatch, timers: Timers) -> TeacherSays:
        """The teacher's side of a micro-batch."""
        assert batch.teacher is not None
        with timers.section("teacher_forward"):
            says = TeacherSays(self._run(batch.teacher))
            if self.contrasts:
                says.second_logp_N = self._second_logp(batch)
        return says

    def statistics(self, batch: MicroBatch, teacher: HiddenTeacher) -> TokenStats:
        """`teacher_logp` and `teacher_entropy` `[N]`, before the loss."""
        stats = self._statistics(teacher, batch.target_N, batch.keep_N)
        return TokenStats({"teacher_logp": stats.logp, "teacher_entropy": stats.entropy})

    def _run(self, side: Side) -> HiddenTeacher:
        def one(network: Any) -> HiddenTeacher:
            hidden_ND, head = hidden_and_head(network, side, valid_vocab=self.valid_vocab)
            return HiddenTeacher(hidden_ND.detach(), head)

        with self.weights.active() as network:
            teacher = one(network)
        if self.weights.kind != "trust_region":
            return teacher
        with self.weights.active_student() as student:
            return mixed_teacher(teacher, one(student), self.weights.update_rate)

    def _second_logp(self, batch: MicroBatch) -> Tensor:
        total_N = torch.full(batch.target_N.shape, -torch.inf, device=batch.target_N.device)
        count_N = torch.zeros_like(total_N)
        for negative in batch.negatives:
            at = negative.token_n
            stats = self._statistics(self._run(negative.side), batch.target_N[at], batch.keep_N[at])
            total_N[at] = torch.logaddexp(total_N[at], stats.logp.float())
            count_N[at] += 1
        return torch.where(count_N > 0, total_N - count_N.log(), torch.nan)

    def _statistics(self, teacher: HiddenTeacher, target_n: Tensor, keep_n: Tensor) -> TokenStats:
        with torch.no_grad():
            return token_stats(
                teacher.hidden, teacher.head, targets=target_n, mask=keep_n, **self.settings
            )
