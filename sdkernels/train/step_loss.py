"""The loss of one micro-batch: two trunk passes, thresholds where a gate needs them, and
`sd.token_loss`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from sdkernels import gates, recipes
from sdkernels.engine import HiddenTeacher, LMHead, TokenStats, token_loss, token_stats
from sdkernels.engine.stats import Tokens
from sdkernels.recipes import Recipe
from sdkernels.train.batch import MicroBatch
from sdkernels.train.config import SelfDistillConfig
from sdkernels.train.forward import hidden_and_head
from sdkernels.train.settings import check_choice
from sdkernels.train.step_metrics import Timers
from sdkernels.train.step_switches import StepSwitches
from sdkernels.train.teacher import TeacherWeights
from sdkernels.train.teacher_passes import TeacherPasses, TeacherSays

# Settings of the engine that a pass for plain statistics shares with the loss.
_PLAIN = ("temperature", "teacher_temperature", "chunk_bytes", "slab_dtype", "backend", "debug")
GATE_TYPES: dict[str, Callable[..., gates.Gate]] = {
    "direction_adaptive": gates.DirectionAdaptive,
    "entropy_sign": gates.EntropySign,
    "schmitt": gates.Schmitt,
}
SUPPLIED = frozenset({"weight", "adv", "success", "gap_scale", "second_teacher_logp"})


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
        self.switches = StepSwitches(gate, recipe.entropy_ceiling)
        self.engine_settings: dict[str, Any] = {
            **_temperatures(config, recipe),
            **{name: value for name, value in recipe.engine.items() if "temperature" not in name},
            "chunk_bytes": config.chunk_bytes,
            "slab_dtype": config.slab_dtype,
            "backend": config.engine_backend,
            "debug": config.engine_debug,
        }
        self.teacher = None
        if teacher is not None:
            self.teacher = TeacherPasses(
                teacher,
                contrasts="second_teacher_logp" in recipe.inputs,
                valid_vocab=config.valid_vocab,
                settings=self._plain_settings,
            )

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
        says = self._teacher_says(batch, timers)
        teacher = None if says is None else says.teacher
        with timers.section("student_forward"):
            hidden_ND, head = self._hidden_and_head(model, batch)
        with timers.section("loss"):
            tokens = self.tokens(batch, says)
            gate: gates.Gate | gates.BoundGate | None = (
                self.gate if thresholds is None else thresholds.gate
            )
            if self._needs_statistics_first(thresholds):
                before = self._statistics(hidden_ND, head, batch, teacher)
                if self.gate is not None and thresholds is None and self.gate.needs_entropy:
                    gate = self.thresholds(batch, before.entropy).gate
                if "gap_scale" in self.recipe.inputs:
                    gap_BL = batch.unpack(before.teacher_logp - before.logp)
                    mask_BL = batch.unpack(batch.keep_N)
                    tokens["gap_scale"] = batch.pack(recipes.gap_scale(gap_BL, mask_BL))
            loss, stats = token_loss(
                hidden_ND,
                head,
                self.recipe.loss_fn,
                targets=batch.target_N,
                teacher=teacher,
                tokens=tokens,
                mask=batch.keep_N,
                gate=gate,
                **self.engine_settings,
            )
        self.switches.observe(batch, stats)
        return loss, self._with_direction(stats, tokens)

    def tokens(self, batch: MicroBatch, says: TeacherSays | None) -> dict[str, Tensor]:
        """The per-token inputs `[N]` that the recipe reads, but for those that need statistics of
        the student.
        """
        made = {
            "weight": batch.weight_N,
            "adv": batch.advantage_N,
            "success": batch.success_N,
            "signal": batch.signal_N,
            "old_logp": batch.old_logp_N,
            "second_teacher_logp": None if says is None else says.second_logp_N,
            "strength": torch.full_like(batch.weight_N, batch.strength),
            "batch_mean": None
            if batch.batch_mean is None
            else torch.full_like(batch.weight_N, batch.batch_mean),
        }
        read = self.recipe.inputs | self.recipe.optional
        return {name: value for name, value in made.items() if value is not None and name in read}

    def quantity(self, batch: MicroBatch, timers: Timers) -> Tensor:
        """Weighted sum and weight `[2]` of the recipe's `batch_quantity` over a micro-batch; what
        the teacher said stays in the batch for the loss.
        """
        assert self.recipe.batch_quantity is not None
        assert self.teacher is not None
        batch.teacher_says = self.teacher(batch, timers)
        stats = self.teacher.statistics(batch, batch.teacher_says.teacher)
        tokens = self.tokens(batch, batch.teacher_says)
        value_N, counts_N = self.recipe.batch_quantity(stats, Tokens(tokens))
        counts_N = counts_N & batch.keep_N
        weight_N = torch.where(counts_N, batch.weight_N, 0.0)
        total = (weight_N * torch.where(counts_N, value_N, 0.0)).sum(dtype=torch.float32)
        return torch.stack([total, weight_N.sum()])

    def statistics(self, model: Any, batch: MicroBatch) -> TokenStats:
        """The student's log-probs and entropies of a micro-batch's tokens `[N]`, without
        gradient.
        """
        with torch.no_grad():
            return self._statistics(*self._hidden_and_head(model, batch), batch, None)

    def thresholds(self, batch: MicroBatch, entropy_N: Tensor) -> Thresholds:
        """The gate's thresholds for a micro-batch by itself, from its tokens' entropies."""
        assert self.gate is not None
        bound = self.gate.bind(batch.unpack(entropy_N), batch.unpack(batch.keep_N))
        return Thresholds.packed(bound, batch)

    def _teacher_says(self, batch: MicroBatch, timers: Timers) -> TeacherSays | None:
        if self.teacher is None or batch.teacher is None:
            return None
        says: TeacherSays = batch.teacher_says or self.teacher(batch, timers)
        batch.teacher_says = None
        return says

    def _with_direction(self, stats: TokenStats, tokens: dict[str, Tensor]) -> TokenStats:
        """The statistics with the direction that acted: guards included, uniform ones too."""
        if self.recipe.direction is None:
            return stats
        acted_N = self.recipe.direction(stats, Tokens(tokens))
        return TokenStats(dict(stats.items()) | {"direction": acted_N})

    @property
    def _plain_settings(self) -> dict[str, Any]:
        return {name: self.engine_settings[name] for name in _PLAIN}

    def _needs_statistics_first(self, thresholds: Thresholds | None) -> bool:
        unbound = self.gate is not None and thresholds is None and self.gate.needs_entropy
        return unbound or "gap_scale" in self.recipe.inputs

    def _statistics(
        self, hidden_ND: Tensor, head: LMHead, batch: MicroBatch, teacher: HiddenTeacher | None
    ) -> TokenStats:
        with torch.no_grad():
            return token_stats(
                hidden_ND.detach(),
                head,
                targets=batch.target_N,
                teacher=teacher,
                mask=batch.keep_N,
                **self._plain_settings,
            )

    def _hidden_and_head(self, model: Any, batch: MicroBatch) -> tuple[Tensor, LMHead]:
        return hidden_and_head(model, batch.student, valid_vocab=self.config.valid_vocab)


def _temperatures(config: SelfDistillConfig, recipe: Recipe) -> dict[str, float | None]:
    """What the settings name wins, then what the recipe's source fixes, then that of sampling."""
    student = config.loss_temperature or recipe.engine.get("temperature") or config.temperature
    teacher = config.teacher_temperature or recipe.engine.get("teacher_temperature")
    return {"temperature": student, "teacher_temperature": teacher}


def make_gate(config: SelfDistillConfig, recipe: Recipe) -> gates.Gate | None:
    """The gate that the settings name, for recipes that need one.

    Raises:
        ValueError: a gate for a recipe that has no use for it, or for this one; a setting that the
            gate has not, with the nearest one.
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
    if kind == "entropy_sign" and settings.get("tau") is None:
        settings = {"min_tokens": 8, **(settings or {"quantile": 0.8})}
    make = GATE_TYPES[kind]
    for name in settings:
        check_choice(
            f"gate_args of gate {kind!r}: setting", name, tuple(signature(make).parameters)
        )
    try:
        return make(**settings)
    except ValueError as error:
        raise ValueError(f"gate_args of gate {kind!r}: {error}") from error
