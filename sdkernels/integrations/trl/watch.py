"""A trainer's loss must come from the engine: what passes it by is refused, not run in silence.

A subclass of a TRL trainer may override a method and call `super()` in it, or replace it by code
that never comes to what the engine replaces. Only running it tells the two apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from sdkernels.integrations.undo import swapped

Base: Any = Any if TYPE_CHECKING else object


class WatchedLoss(Base):  # type: ignore[misc, unused-ignore]
    """Stands before everything else in the class of a trainer that uses the engine."""

    # The record of the loss being computed. On the trainer, which all threads see: under
    # nn.DataParallel the model's forward, and with it the engine, runs in others.
    _engine_calls: list[bool] | None = None

    def _engine_reached(self) -> None:
        """Called by whatever computes a part of the loss in the engine."""
        if self._engine_calls is not None:
            self._engine_calls.append(True)

    def compute_loss(
        self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Any:
        """The trainer's own. Who asks for outputs (evaluation that computes metrics) may get them
        from the untouched trainer, so only the loss alone is watched.
        """
        seen: list[bool] = []
        with swapped(self, "_engine_calls", seen):
            found = super().compute_loss(
                model, inputs, return_outputs=return_outputs, num_items_in_batch=num_items_in_batch
            )
        if not seen and not return_outputs:
            overrides = ", ".join(_overrides(self)) or "nothing in the class"
            raise TypeError(
                f"{type(self).__name__} came to its loss without the engine: an override replaces "
                f"what would have called it (overridden here: {overrides}). Call super() in it, or "
                "train without use_engine"
            )
        return found


def _overrides(trainer: Any) -> Iterator[str]:
    """The methods of TRL's class that a subclass or the trainer itself has in other form."""
    steps = type(trainer)._before_engine.__mro__
    trl_class = next(step for step in steps if step.__module__.startswith("trl."))
    for step in steps[: steps.index(trl_class)]:
        for name in vars(step):
            if callable(getattr(trl_class, name, None)) and not name.startswith("__"):
                yield f"{step.__name__}.{name}"
    for name in vars(trainer):
        if callable(getattr(trl_class, name, None)):
            yield f"the trainer's own {name}"
