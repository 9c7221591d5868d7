"""The loss of one micro-batch: two trunk passes, thresholds where a gate needs them, and
`sd.token_loss`.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdkernels import gates, recipes
from sdkernels.engine import HiddenTeacher, LMHead, TokenStats, token_loss, token_stats
from sdkernels.recipes import Recipe
from sdkernels.train.batch import MicroBatch
from sdkernels.train.config import SelfDistillConfig
from sdkernels.train.forward import hidden_states
from sdkernels.train.step_metrics import Timers
from sdkernels.train.teacher import TeacherWeights

# Settings of the engine that a pass for plain statistics shares with the loss.
_PLAIN = ("temperature", "teacher_temperature", "chunk_bytes", "slab_dtype", "backend", "debug")
SUPPLIED = frozenset({"weight", "adv", "success", "gap_scale"})


@dataclass
class Thresholds:
    """Thresholds of an entropy gate for the packed tokens of one micro-batch."""

    gate: gates.BoundGate

    @classmethod
    def packed(
        cls, bound: gates.BoundGate, batch: MicroBatch, rows: slice = slice(None)
    ) -> Thresholds:
        """Those of the micro-batch's tokens, from a gate that was bound to `[B, L]` entropies."""
        tau_N = batch.pack(bound.tau[rows])
        sigma_N = None if bound.sigma is None else batch.pack(bound.sigma[rows])
        return cls(dataclasses.replace(bound, tau=tau_N, sigma=sigma_N))


class StepLoss:
    """Computes losses with one recipe and one teacher.

    Raises:
        ValueError: the recipe needs a per-token input that a trainer cannot make.
    """

    def __init__(
        self,
        config: SelfDistillConfig,
        recipe: Recipe,
        gate: gates.Gate | None,
        teacher: TeacherWeights | None,
    ) -> None:
        unknown = recipe.inputs - SUPPLIED
        if unknown:
            raise ValueError(
                f"recipe {recipe.name!r} needs the per-token inputs {sorted(unknown)}, which the "
                "trainer does not make "
                f"(it makes {sorted(SUPPLIED)}); call sd.token_loss with them in your own loop"
            )
        self.config = config
        self.recipe = recipe
        self.gate = gate
        self.teacher = teacher
        self.engine_settings: dict[str, Any] = {
            **_temperatures(config, recipe),
            **{name: value for name, value in recipe.engine.items() if "temperature" not in name},
            "chunk_bytes": config.chunk_bytes,
            "slab_dtype": config.slab_dtype,
            "backend": config.engine_backend,
            "debug": config.engine_debug,
        }

    @property
    def gate_spans_step(self) -> bool:
        """Whether the gate's threshold is that of the whole optimisation step, so that it cannot be
        had batch by batch.
        """
        return self.gate is not None and getattr(self.gate, "scope", None) == "batch"

    def __call__(
        self, model: Any, batch: MicroBatch, thresholds: Thresholds | None, timers: Timers
    ) -> tuple[Tensor, TokenStats]:
        """Scalar loss of the micro-batch (its share of the step's mean) and the statistics of its
        tokens `[N]`.
        """
        teacher = self._teacher_side(batch, timers)
        with timers.section("student_forward"):
            hidden_ND = hidden_states(model, batch.student)
        with timers.section("loss"):
            head = self._head(model)
            tokens = {
                "weight": batch.weight_N,
                "adv": batch.advantage_N,
                "success": batch.success_N,
            }
            if "old_logp" in self.recipe.needs and batch.old_logp_N is not None:
                tokens["old_logp"] = batch.old_logp_N
            gate: gates.Gate | gates.BoundGate | None = (
                self.gate if thresholds is None else thresholds.gate
            )
            if self._needs_statistics_first(thresholds):
                before = self._statistics(hidden_ND, head, batch, teacher)
                mask_BL = batch.unpack(batch.keep_N)
                if self.gate is not None and thresholds is None:
                    gate = self.thresholds(batch, before.entropy).gate
                if "gap_scale" in self.recipe.inputs:
                    gap_BL = batch.unpack(before.teacher_logp - before.logp)
                    tokens["gap_scale"] = batch.pack(recipes.gap_scale(gap_BL, mask_BL))
            return token_loss(
                hidden_ND,
                head,
                self.recipe.loss_fn,
                targets=batch.target_N,
                teacher=teacher,
                tokens={
                    name: value
                    for name, value in tokens.items()
                    if name in self.recipe.inputs | {"old_logp"}
                },
                mask=batch.keep_N,
                gate=gate,
                **self.engine_settings,
            )

    def statistics(self, model: Any, batch: MicroBatch) -> TokenStats:
        """The student's log-probs and entropies of a micro-batch's tokens `[N]`, without
        gradient.
        """
        with torch.no_grad():
            hidden_ND = hidden_states(model, batch.student)
            return self._statistics(hidden_ND, self._head(model), batch, None)

    def thresholds(self, batch: MicroBatch, entropy_N: Tensor) -> Thresholds:
        """The gate's thresholds for a micro-batch by itself, from its tokens' entropies."""
        assert self.gate is not None
        bound = self.gate.bind(batch.unpack(entropy_N), batch.unpack(batch.keep_N))
        return Thresholds.packed(bound, batch)

    def _teacher_side(self, batch: MicroBatch, timers: Timers) -> HiddenTeacher | None:
        if self.teacher is None or batch.teacher is None:
            return None
        with timers.section("teacher_forward"), self.teacher.active() as network:
            hidden_ND = hidden_states(network, batch.teacher)
            return HiddenTeacher(hidden_ND.detach(), self._head(network))

    def _needs_statistics_first(self, thresholds: Thresholds | None) -> bool:
        unbound = self.gate is not None and thresholds is None and self.gate.needs_entropy
        return unbound or "gap_scale" in self.recipe.inputs

    def _statistics(
        self, hidden_ND: Tensor, head: LMHead, batch: MicroBatch, teacher: HiddenTeacher | None
    ) -> TokenStats:
        settings = {k: v for k, v in self.engine_settings.items() if k in _PLAIN}
        with torch.no_grad():
            return token_stats(
                hidden_ND.detach(),
                head,
                targets=batch.target_N,
                teacher=teacher,
                mask=batch.keep_N,
                **settings,
            )

    def _head(self, model: Any) -> LMHead:
        return LMHead.from_model(model, valid_vocab=self.config.valid_vocab)


def _temperatures(config: SelfDistillConfig, recipe: Recipe) -> dict[str, float | None]:
    """What the settings name wins, then what the recipe's source fixes, then that of sampling."""
    student = config.loss_temperature or recipe.engine.get("temperature") or config.temperature
    teacher = config.teacher_temperature or recipe.engine.get("teacher_temperature")
    return {"temperature": student, "teacher_temperature": teacher}


def make_gate(config: SelfDistillConfig, recipe: Recipe) -> gates.Gate | None:
    """The gate that the settings name, for recipes that need one.

    Raises:
        ValueError: a gate for a recipe that has no use for it, or for this one.
    """
    if "gate" not in recipe.needs:
        for name in ("gate", "gate_args"):
            if getattr(config, name) is not None:
                raise ValueError(
                    f"{name}={getattr(config, name)!r} has no effect with recipe {recipe.name!r} "
                    "as it is set; leave it out"
                )
        return None
    kind = config.gate or recipe.gates[0]
    if kind not in recipe.gates:
        raise ValueError(
            f"gate={kind!r} does not go with recipe {recipe.name!r}, which takes "
            f"{' or '.join(map(repr, recipe.gates))}"
        )
    settings = config.mapping("gate_args")
    if kind == "entropy_sign":
        return gates.EntropySign(**(settings or {"quantile": 0.8}))
    return gates.Schmitt(**settings) if kind == "schmitt" else gates.DirectionAdaptive(**settings)
