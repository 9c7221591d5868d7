"""One switch for all tokens, on the mean entropies of whole optimisation steps."""

from __future__ import annotations

import math
import statistics
from typing import Any

from torch import Tensor

from sdkernels.gates.bound import BoundGate, Rule
from sdkernels.gates.settings import at_least_1, is_finite, nats
from sdkernels.gates.thresholds import full


class Schmitt:
    """Switch for all tokens at once, with hysteresis, on one mean entropy per optimiser step.

    AntiSD (2605.11609) watches the *teacher's* entropy: off when it falls below `off_ratio` times
    its warm-up value, on again once it is back at `on_ratio` times. With `off_ratio` > `on_ratio`
    it is a ceiling instead: off above, on again at or below. On during warm-up.

    It has a state and looks at one step at a time, so whoever trains feeds it:

        token_loss(..., gate=gate)      # direction 1 (on) or 0 (off)
        gate.update(mean_entropy)       # after the step, for the next one

    Args:
        off_ratio: switches off beyond this multiple of the warm-up median.
        on_ratio: switches on again at this multiple (the paper: 1; its launch script: 1.07).
        warmup_steps: entropies whose median is the reference.

    Raises:
        ValueError: ratios that are not positive or are equal, no warm-up.
    """

    rule: Rule = "sign"
    needs_entropy = False

    def __init__(
        self, off_ratio: float = 0.93, on_ratio: float = 1.0, *, warmup_steps: int = 5
    ) -> None:
        for name, ratio in (("off_ratio", off_ratio), ("on_ratio", on_ratio)):
            if not is_finite(ratio) or ratio <= 0:
                raise ValueError(f"{name}={ratio!r} is not accepted; give a number > 0")
        if off_ratio == on_ratio:
            raise ValueError(
                f"off_ratio={off_ratio} and on_ratio={on_ratio} leave no hysteresis; give "
                "on_ratio above off_ratio for a floor, below it for a ceiling"
            )
        self.off_ratio, self.on_ratio = float(off_ratio), float(on_ratio)
        self.warmup_steps = at_least_1("warmup_steps", warmup_steps)
        self.is_on = True
        self._warmup_nats: list[float] = []

    @property
    def reference_nats(self) -> float | None:
        """Median entropy of the warm-up; None until it is over."""
        if len(self._warmup_nats) < self.warmup_steps:
            return None
        return statistics.median(self._warmup_nats)

    def update(self, entropy: float) -> bool:
        """Take the mean entropy of a step, in nats; returns whether the gate is on from now on."""
        entropy = nats("entropy", entropy)
        reference = self.reference_nats
        if reference is None:
            self._warmup_nats.append(entropy)
            return self.is_on
        # Mirrored, a ceiling is a floor.
        side = 1.0 if self.off_ratio < self.on_ratio else -1.0
        if side * entropy < side * self.off_ratio * reference:
            self.is_on = False
        elif side * entropy >= side * self.on_ratio * reference:
            self.is_on = True
        return self.is_on

    def bind(self, entropy_BL: Tensor | None, mask_BL: Tensor) -> BoundGate:
        """The same direction for every token of this batch: 1 if on, 0 if off."""
        sigma = full(mask_BL, 1.0 if self.is_on else 0.0)
        return BoundGate(self.rule, full(mask_BL, math.inf), sigma)

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint needs."""
        return {"is_on": self.is_on, "warmup_nats": list(self._warmup_nats)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        self.is_on = bool(state["is_on"])
        self._warmup_nats = [float(value) for value in state["warmup_nats"]]
