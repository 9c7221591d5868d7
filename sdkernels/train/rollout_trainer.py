"""`RolloutTrainer`: a Trainer whose optimisation steps are fed by batches of rollouts.

All prompts of a batch of rollouts are rolled out, judged and given their teacher prompts at once,
so that what is sampled does not depend on gradient accumulation. With the defaults every step has
a batch of its own.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sdkernels.contexts import Example
from sdkernels.train.batch import MicroBatch, Row, collate
from sdkernels.train.checkpoint import last_checkpoint, step_of
from sdkernels.train.config import SelfDistillConfig
from sdkernels.train.method_passes import MethodPasses
from sdkernels.train.policy_passes import PolicyPasses
from sdkernels.train.prepare import StepBuilder
from sdkernels.train.records import pick_rows
from sdkernels.train.resumable import ResumableTrainer
from sdkernels.train.rollout_batch import (
    RepeatedBlocks,
    RolloutBatch,
    load_rollouts,
    save_rollouts,
)
from sdkernels.train.server import ServerRollout
from sdkernels.train.sides import padding_id
from sdkernels.train.step_metrics import StepMetrics, Timers
from sdkernels.train.weight_sync import WeightSync


class RolloutTrainer(ResumableTrainer):
    """What `SelfDistillTrainer` adds to fetching batches.

    Attributes:
        builder: makes rows of prompts.
        passes: passes of the student without gradient.
        method_passes: what the recipe needs for a whole optimisation step.
        with_teacher: whether the loss compares with a teacher.
        packed: whether sequences are packed without padding.
        rollouts: the batch of rollouts that is being trained on.
        weight_sync: gives a rollout server the weights before each batch of rollouts.
    """

    args: SelfDistillConfig
    builder: StepBuilder
    passes: PolicyPasses
    method_passes: MethodPasses
    metrics: StepMetrics
    timers: Timers
    with_teacher: bool
    packed: bool
    unwrapped: Any
    weight_sync: WeightSync | None
    rollouts: RolloutBatch | None = None
    _shown: list[Row]
    _unread = 0

    def get_batch_samples(
        self, epoch_iterator: Iterator[list[Example]], num_batches: int, device: torch.device
    ) -> tuple[list[dict[str, Any]], int | float]:
        """Fetch the prompts of the whole step and make its micro-batches; called once per
        optimisation step.
        """
        self.begin_step()
        step = self.state.global_step
        for _ in range(self._unread):
            next(epoch_iterator, None)
        self._unread = 0
        if self.rollouts is None or not self.rollouts.serves(step):
            self.rollouts = self._roll_out(epoch_iterator)
        micro_batches = self.rollouts.of_step(step)
        rows = [row for part in micro_batches for row in part]
        if not rows:
            return [], 0
        self.builder.count(rows, self.metrics)
        mask_BL = self.builder.mask(rows)
        num_items = self._over_ranks(self.builder.num_items(mask_BL))
        self.builder.weigh(rows, mask_BL, num_items)
        self._shown = self._rows_to_show(rows)
        batches = [self._collate(part) for part in micro_batches]
        self.method_passes.prepare(batches, step, self.timers)
        self._count_padding(batches)
        thresholds = self.passes.thresholds_of_step(batches, self.timers)
        inputs = [
            {"input_ids": batch.student.input_ids, "micro_batch": batch, "thresholds": threshold}
            for batch, threshold in zip(batches, thresholds, strict=True)
        ]
        return inputs, num_items

    def _roll_out(self, epoch_iterator: Iterator[list[Example]]) -> RolloutBatch:
        """Rows for this optimisation step and those that share its rollouts, from the prompts of
        all of them.
        """
        passes = self.args.num_iterations
        steps = self.args.steps_per_rollout_pass
        wanted = steps * passes * self.args.gradient_accumulation_steps
        prompts = [part for _, part in zip(range(wanted), epoch_iterator, strict=False)]
        # The later passes' prompts are those of the first one: the sampler repeats them.
        prompts = prompts[: len(prompts) // passes]
        batch = RolloutBatch(
            self.state.global_step,
            [],
            accumulation=self.args.gradient_accumulation_steps,
            passes=passes,
        )
        if not prompts:
            return batch
        self._push_weights()
        rows = self.builder.build(
            [example for part in prompts for example in part],
            step=self.state.global_step,
            rank=self.args.process_index,
            timers=self.timers,
        )
        self.abandon_if_asked()
        ends = itertools.accumulate(len(part) * self.args.num_generations for part in prompts)
        batch.micro_batches = [rows[a:b] for a, b in itertools.pairwise((0, *ends))]
        if self.args.is_off_policy:
            self.passes.record(batch, self.builder, self.timers)
        return batch

    def _push_weights(self) -> None:
        if self.weight_sync is None:
            return
        with self.timers.section("rollout"):
            self.weight_sync.push(self.unwrapped, main=self.is_world_process_zero())
            self.accelerator.wait_for_everyone()

    def checkpoint_saved(self) -> None:
        """Drop finished rollouts of earlier steps: no resumed run is going to ask for them."""
        if isinstance(self.builder.backend, ServerRollout):
            self.builder.backend.forget()

    def _collate(self, rows: list[Row]) -> MicroBatch:
        return collate(
            rows,
            padding_id(self.processing_class),
            self.args.device,
            with_teacher=self.with_teacher,
            packed=self.packed,
        )

    def _count_padding(self, batches: list[MicroBatch]) -> None:
        """Shares of padding in what student and teacher read: as it is, and padded."""
        for batch in batches:
            for side in filter(None, (batch.student, batch.teacher)):
                for name, size in (
                    ("padding_share", side.input_ids.numel()),
                    ("padding_share_if_padded", side.padded_size),
                ):
                    self.metrics.add(name, size - side.num_tokens, size)

    def _over_ranks(self, count: int) -> int | float:
        if self.accelerator.num_processes == 1 or not self.args.average_tokens_across_devices:
            return count
        total = self.accelerator.reduce(
            torch.tensor(count, device=self.args.device), reduction="sum"
        )
        return int(total)

    def _rows_to_show(self, rows: list[Row]) -> list[Row]:
        due = self.state.global_step % self.args.dump_tokens_steps == 0
        return (
            pick_rows(rows, self.args.dump_tokens) if due and self.is_world_process_zero() else []
        )

    def save_rollouts(self, folder: Path) -> None:
        """Write this rank's rows, if a batch of rollouts is under way."""
        if self.rollouts is not None and self.rollouts.serves(self.state.global_step):
            save_rollouts(
                folder, self.rollouts, self.args.process_index, self.accelerator.num_processes
            )

    def load_rollouts(self, folder: Path | None) -> None:
        """Take over what `save_rollouts` wrote into a checkpoint."""
        self.rollouts, self._unread = None, 0
        if folder is None or folder != last_checkpoint(Path(self.args.output_dir)):
            self.checkpoint_saved()
        if folder is None:
            return
        self.rollouts = load_rollouts(
            folder,
            self.train_dataset,
            rank=self.args.process_index,
            num_ranks=self.accelerator.num_processes,
            accumulation=self.args.gradient_accumulation_steps,
        )
        if self.rollouts is not None and not self.args.ignore_data_skip:
            self._unread = self.rollouts.unread(step_of(folder) or 0)

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        if self.args.num_iterations == 1:
            return super()._get_train_sampler(train_dataset)
        args = self.args
        examples = self.train_dataset if train_dataset is None else train_dataset
        step = args.train_batch_size * args.gradient_accumulation_steps * args.world_size
        return RepeatedBlocks(
            len(examples),
            block=step * args.steps_per_rollout_pass,
            step=step,
            repeats=args.num_iterations,
            seed=args.seed if args.data_seed is None else args.data_seed,
        )
