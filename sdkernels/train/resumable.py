"""`ResumableTrainer`: transformers' Trainer with checkpoints that are whole or absent, and orderly
stops.

A step that a signal interrupts is dropped: nothing of it has reached the weights, so the checkpoint
of the state before it, random numbers included, continues exactly where the run would have gone.
"""

from __future__ import annotations

import logging
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import Trainer

from sdkernels.train import checkpoint, sharding
from sdkernels.train.errors import Interrupted
from sdkernels.train.interrupt import StepAbandonedError, StopRequest
from sdkernels.train.loading import no_progress_bars
from sdkernels.train.records import JsonLines

logger = logging.getLogger(__name__)


class ResumableTrainer(Trainer):
    """What `SelfDistillTrainer` adds to saving, stopping and resuming.

    Attributes:
        stop: the request of Ctrl-C or SIGTERM.
        logs: files whose lines of later steps are dropped on resume.
    """

    stop: StopRequest
    logs: tuple[JsonLines, ...] = ()
    _before_step: dict[str, Any]

    def begin_step(self) -> None:
        """Note the random states that a checkpoint of the steps so far needs."""
        self._before_step = _random_states()
        self.abandon_if_asked()

    def teacher_state(self) -> dict[str, torch.Tensor]:
        """Tensors saved beside the student's."""
        return {}

    def load_teacher_state(self, state: dict[str, torch.Tensor]) -> None:
        """Take over what `teacher_state` gave."""

    def save_rollouts(self, folder: Path) -> None:
        """Write what the next steps need of rollouts that are under way; on every rank."""

    def load_rollouts(self, folder: Path | None) -> None:
        """Take over what `save_rollouts` wrote; None: start without."""

    def checkpoint_saved(self) -> None:
        """Called on every rank once a checkpoint is complete."""

    def abandon_if_asked(self) -> None:
        """Drop the step in progress after Ctrl-C; several ranks stop together, at its end."""
        if self.accelerator.num_processes == 1:
            self.stop.abandon_if_requested()

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """Train, optionally from a checkpoint: a folder, or True / "last" for the newest complete
        one.

        Raises:
            Interrupted: after SIGINT or SIGTERM, once a checkpoint is on disk; the message says how
                to resume.
            CheckpointError: a checkpoint cannot be written (the partial one is removed) or read.
        """
        folder = Path(self.args.output_dir)
        wanted = (
            self.args.resume_from_checkpoint
            if resume_from_checkpoint is None
            else resume_from_checkpoint
        )
        resume = checkpoint.resolve_resume(folder, wanted)
        self._clean(folder, resume)
        if resume is not None:
            self.load_teacher_state(checkpoint.load_teacher(resume))
        self.load_rollouts(resume)
        with self.stop:
            try:
                output = super().train(
                    resume_from_checkpoint=str(resume) if resume else None, **kwargs
                )
            except StepAbandonedError:
                self._save_abandoned()
        if self.stop.requested:
            raise Interrupted(self._farewell(), self.stop.signal_number or 0)
        return output

    def _clean(self, folder: Path, resume: Path | None) -> None:
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            for partial in checkpoint.incomplete_checkpoints(folder):
                logger.warning("%s is incomplete (its writing was cut short): removed", partial)
                shutil.rmtree(partial)
            step = 0 if resume is None else checkpoint.step_of(resume) or 0
            for log in self.logs:
                log.keep_until(step)
        self.accelerator.wait_for_everyone()

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        run_folder = Path(self._get_output_dir(trial))
        folder = run_folder / f"checkpoint-{self.state.global_step}"
        if checkpoint.is_complete(folder):
            return
        limit = self.args.save_total_limit
        hint = self._how_to_resume(run_folder)
        with no_progress_bars(), checkpoint.all_or_nothing(folder, resume_hint=hint):
            # Old checkpoints go once the new one is complete, not before.
            self.args.save_total_limit = None
            try:
                super()._save_checkpoint(model, trial)
            finally:
                self.args.save_total_limit = limit
            if self.args.should_save:
                checkpoint.save_teacher(folder, self.teacher_state())
                torch.save(self.args, folder / "training_args.bin")
            self.accelerator.wait_for_everyone()
            self.save_rollouts(folder)
            self.accelerator.wait_for_everyone()
            if self.args.should_save:
                checkpoint.mark_complete(folder, self.state.global_step)
        self.checkpoint_saved()
        if self.args.should_save:
            checkpoint.rotate(run_folder, limit, keep=self.state.best_model_checkpoint)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        folder = Path(resume_from_checkpoint)
        if sharding.is_sharded(folder) and not self.is_fsdp_enabled:
            sharding.load_model(folder, self.model if model is None else model)
            return
        super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        folder = None if checkpoint is None else Path(checkpoint)
        if folder is None or sharding.is_sharded(folder) == self.is_fsdp_enabled:
            super()._load_optimizer_and_scheduler(checkpoint)
        elif self.is_fsdp_enabled:
            sharding.refuse_plain(folder)
            super()._load_optimizer_and_scheduler(checkpoint)
        else:
            optimizer: Any = self.optimizer
            sharding.load_optimizer(folder, self.model, optimizer.optimizer)
            schedule: Any = self.lr_scheduler
            schedule.load_state_dict(torch.load(folder / "scheduler.pt", weights_only=True))

    def _save_abandoned(self) -> None:
        if self.state.global_step == 0:
            return
        _restore_random_states(self._before_step)
        self._save_checkpoint(self.model, trial=None)

    def _farewell(self) -> str:
        if self.state.global_step == 0:
            return "stopped before the first step was done: start again with the same command"
        how = self._how_to_resume(Path(self.args.output_dir))
        return f"stopped after step {self.state.global_step} of {self.state.max_steps}. {how}"

    def _how_to_resume(self, folder: Path) -> str:
        last = checkpoint.last_checkpoint(folder)
        if last is None:
            return "There is no earlier checkpoint to resume from."
        command = f"sdkernels train --config {folder / 'config.yaml'} --resume_from_checkpoint last"
        return f"Resume from {last.name}: {command}"


def _random_states() -> dict[str, Any]:
    states: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": np.random.get_state(),
        "cpu": torch.get_rng_state(),
    }
    if torch.cuda.is_available():
        states["cuda"] = torch.cuda.get_rng_state_all()
    return states


def _restore_random_states(states: dict[str, Any]) -> None:
    random.setstate(states["python"])
    np.random.set_state(states["numpy"])
    torch.set_rng_state(states["cpu"])
    if "cuda" in states:
        torch.cuda.set_rng_state_all(states["cuda"])
