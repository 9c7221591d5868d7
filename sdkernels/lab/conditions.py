"""Conditions of the lab: which loss, which context, which gate; and the cells made of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from sdkernels.gates import DirectionAdaptive, EntropySign


@dataclass(frozen=True)
class Condition:
    """One way to train.

    Attributes:
        recipe, settings: for `sd.recipes.get`.
        context: what the teacher sees.
        gate: "" (none), "pull" and "push" (one direction for all tokens) or "dasd" (by entropy).
    """

    name: str
    title: str
    recipe: str
    context: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    gate: str = ""


def make_gate(name: str) -> Any:
    """The gate of a condition; None for none.

    An entropy is never negative and never above log V, so two fixed thresholds make one direction
    for all tokens. A token with an entropy of exactly 0 is pulled by "push" as well: there is
    nothing to push there.
    """
    if name == "dasd":
        return DirectionAdaptive()
    return {"": None, "pull": EntropySign(tau=1e9), "push": EntropySign(tau=0.0)}[name]


def _pull(context: str, title: str) -> Condition:
    return Condition(f"pull_{context}", title, "sdpo", context)


def _routed(gate: str, title: str, *, weak: bool = False) -> Condition:
    name = ("dasd" if gate == "dasd" else f"grpo_{gate}") + ("_weak" if weak else "")
    title += ", weak" if weak else ""
    return Condition(name, title, "dasd", "solution", {"beta": 0.1 if weak else 0.5}, gate)


GRPO = Condition("grpo", "GRPO (no context)", "grpo", "none")
PULLS = (
    _pull("hint", "pull, hint"),
    _pull("final_answer", "pull, final answer"),
    _pull("step_critique", "pull, step critique"),
    _pull("solution", "pull, solution"),
)
# The verifier's advantage plus the teacher's signal, in DASD's form: only the direction differs.
# At both ends of the range of weights to sweep (beta is unpublished; methods.md section 5).
ROUTED = tuple(
    _routed(gate, title, weak=weak)
    for weak in (False, True)
    for gate, title in (
        ("pull", "GRPO + uniform pull"),
        ("push", "GRPO + uniform push"),
        ("dasd", "DASD"),
    )
)
CONDITIONS = {one.name: one for one in (GRPO, *PULLS, *ROUTED)}


@dataclass(frozen=True)
class Cell:
    """One training: a condition, how many problems of which families, and a seed."""

    condition: str
    coverage: int
    families: tuple[str, ...]
    seed: int

    @property
    def group(self) -> str:
        """Its name without the seed: cells of one group are repetitions."""
        return f"{self.condition}-{self.coverage}-{'+'.join(self.families)}"

    @property
    def name(self) -> str:
        """Its name, also of its file."""
        return f"{self.group}-seed{self.seed}"
