"""Callbacks of the trainer: timing, teacher updates, orderly stops, and a progress bar with one
line a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback, ProgressCallback

if TYPE_CHECKING:
    from sdkernels.train.trainer import SelfDistillTrainer

SHOWN = (
    ("loss", "loss {:.4f}"),
    ("gap", "gap {:+.3f}"),
    ("entropy", "entropy {:.2f}"),
    ("accuracy", "accuracy {:.2f}"),
    ("completion_length", "length {:.0f}"),
    ("tokens_per_second", "{:.1f} tokens/s"),
)


class StepHooks(TrainerCallback):
    """What has to happen between the lines of transformers' loop."""

    def __init__(self, trainer: SelfDistillTrainer) -> None:
        self.trainer = trainer

    def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Start the optimiser's clock."""
        self.trainer.timers.start("optimizer")

    def on_optimizer_step(self, *_: Any, **__: Any) -> None:
        """Stop it."""
        self.trainer.timers.stop("optimizer")

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        """Let the teacher and the switches follow; after a request to stop, save and stop."""
        trainer = self.trainer
        trainer.step_loss.switches.after_step(trainer.sum_over_ranks)
        if trainer.teacher is not None and not trainer.accelerator.optimizer_step_was_skipped:
            trainer.teacher.after_step(state.global_step)
        if self._any_rank_stops():
            control.should_save = True
            control.should_training_stop = True
        return control

    def _any_rank_stops(self) -> bool:
        trainer = self.trainer
        if trainer.accelerator.num_processes == 1:
            return trainer.stop.requested
        asked = torch.tensor(trainer.stop.signal_number or 0, device=trainer.args.device)
        most = int(trainer.accelerator.gather(asked.reshape(1)).max())
        trainer.stop.signal_number = most or None
        return bool(most)


class CompactProgress(ProgressCallback):
    """The usual bar, with the numbers of a step on one line instead of a dictionary of thirty."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Write the line above the bar, on rank 0."""
        if state.is_world_process_zero and self.training_bar is not None and logs:
            line = one_line(state.global_step, logs)
            if line:
                self.training_bar.write(line)


class CompactPrinter(TrainerCallback):
    """The same line without a bar, where bars are switched off."""

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:
        """Print the line, on rank 0."""
        line = one_line(state.global_step, logs or {})
        if state.is_world_process_zero and line:
            print(line, flush=True)


def use_compact_progress(trainer: SelfDistillTrainer) -> None:
    """Replace transformers' way of showing progress."""
    trainer.remove_callback(ProgressCallback)
    trainer.remove_callback(PrinterCallback)
    trainer.add_callback(CompactPrinter() if trainer.args.disable_tqdm else CompactProgress())


def one_line(step: int, logs: dict[str, Any]) -> str:
    """The numbers of a step for the terminal; empty if it has none."""
    parts = [
        form.format(logs[name]) for name, form in SHOWN if isinstance(logs.get(name), int | float)
    ]
    return f"step {step}: " + ", ".join(parts) if "loss" in logs and parts else ""
