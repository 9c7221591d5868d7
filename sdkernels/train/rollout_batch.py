"""A batch of rollouts that serves several optimiser steps, and its place in checkpoints.

As in TRL, a batch of rollouts holds `steps_per_generation` micro-batches and is gone through
`num_iterations` times, `gradient_accumulation_steps` micro-batches an optimiser step. With the
defaults it serves one step, and nothing of this file is ever written.

A checkpoint inside a batch keeps its rows, the log-probs of the policy that sampled them included:
they could not be had again from the weights of the checkpoint.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler

from sdkernels.contexts import Example, Rollout
from sdkernels.train.batch import Row
from sdkernels.train.errors import CheckpointError

FILE_OF_RANK = "rollouts-{rank:05d}.pt"
FILES = "rollouts-*.pt"


@dataclass
class RolloutBatch:
    """Rows of one rank, in micro-batches, and the optimiser steps they serve.

    Attributes:
        first_step: optimiser steps that were done when the rows were sampled.
        accumulation: micro-batches of an optimiser step; the last one of a pass may have fewer.
        passes: how often the rows are gone through.
    """

    first_step: int
    micro_batches: list[list[Row]]
    accumulation: int
    passes: int = 1

    @property
    def steps_per_pass(self) -> int:
        """Optimiser steps of one pass over the rows."""
        return math.ceil(len(self.micro_batches) / self.accumulation)

    @property
    def num_steps(self) -> int:
        """Optimiser steps that the rows serve in all."""
        return self.steps_per_pass * self.passes

    @property
    def rows(self) -> list[Row]:
        """All rows, in order."""
        return [row for rows in self.micro_batches for row in rows]

    def serves(self, step: int) -> bool:
        """Whether the optimiser step after `step` done ones takes its rows from here."""
        return self.first_step <= step < self.first_step + self.num_steps

    def of_step(self, step: int) -> list[list[Row]]:
        """The micro-batches of the optimiser step after `step` done ones."""
        start = (step - self.first_step) % self.steps_per_pass * self.accumulation
        return self.micro_batches[start : start + self.accumulation]

    def unread(self, step: int) -> int:
        """Micro-batches that a data loader, set to `step` done steps, still holds of this batch."""
        return len(self.micro_batches) * self.passes - (step - self.first_step) * self.accumulation


class RepeatedBlocks(Sampler[int]):
    """Shuffled indices in blocks, each block `repeats` times in a row.

    The examples of a batch of rollouts have to come from the data loader as often as they are
    trained on, or the loop would count too few optimiser steps an epoch. What is left at the end of
    an epoch and does not fill an optimiser step is left out, so that no step mixes two passes.

    Args:
        size: number of examples.
        block: examples of one batch of rollouts, over all ranks.
        step: examples of one optimiser step, over all ranks; divides `block`.
        repeats: passes over a batch of rollouts.
        seed: of the order; epochs differ.

    Raises:
        ValueError: there are fewer examples than one optimiser step takes.
    """

    def __init__(self, size: int, *, block: int, step: int, repeats: int, seed: int) -> None:
        if size < step:
            raise ValueError(
                f"num_iterations={repeats} needs the {step} prompts of a whole optimiser step, the "
                f"dataset has {size}; lower per_device_train_batch_size or "
                "gradient_accumulation_steps"
            )
        self.used = size // step * step
        self.size, self.block, self.repeats, self.seed = size, block, repeats, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; called at the start of every epoch."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.used * self.repeats

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed + self.epoch)
        order = torch.randperm(self.size, generator=generator).tolist()[: self.used]
        for start in range(0, self.used, self.block):
            for _ in range(self.repeats):
                yield from order[start : start + self.block]


def save_rollouts(folder: Path, batch: RolloutBatch, rank: int, num_ranks: int) -> None:
    """Write one rank's rows into a checkpoint folder."""
    state = {
        "first_step": batch.first_step,
        "passes": batch.passes,
        "step_micro_batches": batch.accumulation * num_ranks,
        "num_ranks": num_ranks,
        "micro_batches": [[_row_state(row) for row in rows] for rows in batch.micro_batches],
    }
    torch.save(state, folder / FILE_OF_RANK.format(rank=rank))


def load_rollouts(
    folder: Path, examples: Sequence[Example], *, rank: int, num_ranks: int, accumulation: int
) -> RolloutBatch | None:
    """One rank's rows out of a checkpoint folder, None where none were under way.

    The number of processes may be another one, if an optimiser step has as many micro-batches as
    before: they are dealt out again, in the order in which one process would have them.

    Raises:
        CheckpointError: files are missing, an optimiser step has another size, or the data set is
            another one.
    """
    files = sorted(folder.glob(FILES))
    if not files:
        return None
    states = [torch.load(file, weights_only=True) for file in files]
    first = states[0]
    if len(states) != first["num_ranks"]:
        raise CheckpointError(
            f"{folder} holds the rollouts of {len(states)} of {first['num_ranks']} processes: copy "
            f"the missing {FILES} of the other machines there, or resume from an earlier checkpoint"
        )
    if accumulation * num_ranks != first["step_micro_batches"]:
        raise CheckpointError(
            f"{folder} was written in the middle of a batch of rollouts, with "
            f"{first['step_micro_batches']} micro-batches an optimiser step over "
            f"{first['num_ranks']} process(es); now it would be {accumulation * num_ranks} over "
            f"{num_ranks}: set gradient_accumulation_steps so that their product with the number "
            "of processes stays"
        )
    # Data loaders deal batches to ranks in turn.
    turns = zip(*(state["micro_batches"] for state in states), strict=True)
    in_order = [rows for turn in turns for rows in turn]
    known = {_key(example): example for example in examples}
    return RolloutBatch(
        first_step=first["first_step"],
        micro_batches=[
            [_row_of(state, known, folder) for state in rows] for rows in in_order[rank::num_ranks]
        ],
        accumulation=accumulation,
        passes=first["passes"],
    )


def _row_state(row: Row) -> dict[str, Any]:
    state = {name: value for name, value in vars(row).items() if name not in ("example", "rollout")}
    # Both follow from the settings and are set anew in every step.
    del state["weights"], state["counts"]
    return state | {"example": _key(row.example), "rollout": vars(row.rollout)}


def _row_of(state: dict[str, Any], known: dict[tuple[str, str], Example], folder: Path) -> Row:
    fields = dict(state)
    key = tuple(fields.pop("example"))
    if key not in known:
        raise CheckpointError(
            f"{folder} was written in the middle of a batch of rollouts, and its example "
            f"{key[0]!r} is not in the dataset any more; resume with the dataset of the run "
            "folder's config.yaml"
        )
    return Row(example=known[key], rollout=Rollout(**fields.pop("rollout")), **fields)


def _key(example: Example) -> tuple[str, str]:
    """What tells an example: ids alone need not be unique."""
    return example.id, repr(example.prompt)
