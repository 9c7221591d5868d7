"""Batches of rollouts that serve several steps: their order, and their way through checkpoints."""

from __future__ import annotations

import pytest
import torch

from sdkernels.contexts import Example, Rollout
from sdkernels.train.batch import Row
from sdkernels.train.errors import CheckpointError
from sdkernels.train.rollout_batch import (
    RepeatedBlocks,
    RolloutBatch,
    load_rollouts,
    save_rollouts,
)


def batch_of(examples, *, first_step=4, accumulation=2, passes=2, rank=0):
    """One micro-batch an example, one row each."""
    micro_batches = []
    for i, example in enumerate(examples):
        rollout = Rollout(example.id, 0, f"{rank}:{i}", [5, 6, i], False, 1.0, True, "x", "fine")
        row = Row(example, rollout, [1, 2], [3], [{"role": "user", "content": "q"}], 0.5)
        row.old_logp = torch.tensor([-1 / 3, -2.5, -(0.1**i)])
        micro_batches.append([row])
    return RolloutBatch(first_step, micro_batches, accumulation, passes)


def texts(batch):
    return [[row.rollout.text for row in rows] for rows in batch.micro_batches]


def test_steps_take_their_micro_batches_in_turn(make_problems):
    batch = batch_of(make_problems(5))
    assert (batch.steps_per_pass, batch.num_steps) == (3, 6)
    served = [step for step in range(20) if batch.serves(step)]
    assert served == [4, 5, 6, 7, 8, 9]
    seen = [[rows[0].rollout.text for rows in batch.of_step(step)] for step in served]
    one_pass = [["0:0", "0:1"], ["0:2", "0:3"], ["0:4"]]
    assert seen == one_pass + one_pass
    assert [batch.unread(step) for step in (4, 5, 6)] == [10, 8, 6]


def test_blocks_are_repeated_and_shuffled_anew_each_epoch():
    blocks = RepeatedBlocks(11, block=4, step=2, repeats=3, seed=1)
    first = list(blocks)
    assert len(first) == len(blocks) == 30
    parts = [first[:12], first[12:24], first[24:]]
    for part, size in zip(parts, (4, 4, 2), strict=True):
        assert part == part[:size] * 3
    assert len({*first}) == 10  # one example does not fill a step
    blocks.set_epoch(1)
    assert list(blocks) != first
    blocks.set_epoch(0)
    assert list(blocks) == first
    with pytest.raises(ValueError, match=r"needs the 4 prompts of a whole optimiser step.*has 3"):
        RepeatedBlocks(3, block=4, step=4, repeats=2, seed=1)


def test_rows_come_back_bit_for_bit(make_problems, tmp_path):
    examples = make_problems(4)
    saved = batch_of(examples)
    save_rollouts(tmp_path, saved, 0, 1)
    loaded = load_rollouts(tmp_path, examples, rank=0, num_ranks=1, accumulation=2)
    assert (loaded.first_step, loaded.accumulation, loaded.passes) == (4, 2, 2)
    for ours, theirs in zip(saved.rows, loaded.rows, strict=True):
        assert torch.equal(ours.old_logp, theirs.old_logp)
        assert theirs.example is ours.example
        for name in ("rollout", "prompt_ids", "teacher_prompt_ids", "teacher_messages"):
            assert getattr(ours, name) == getattr(theirs, name)
        assert (theirs.advantage, theirs.weights, theirs.entropy) == (0.5, [], None)
    assert load_rollouts(tmp_path / "none", examples, rank=0, num_ranks=1, accumulation=2) is None


def test_another_number_of_processes_gets_the_same_steps(make_problems, tmp_path):
    """Two ranks' micro-batches, dealt to one process and to four."""
    examples = make_problems(8)
    for rank in (0, 1):
        save_rollouts(tmp_path, batch_of(examples[:4], rank=rank), rank, 2)
    one = load_rollouts(tmp_path, examples, rank=0, num_ranks=1, accumulation=4)
    assert [t for (t,) in texts(one)] == [f"{rank}:{i}" for i in range(4) for rank in (0, 1)]
    assert len(one.of_step(4)) == 4
    four = [
        load_rollouts(tmp_path, examples, rank=rank, num_ranks=4, accumulation=1)
        for rank in range(4)
    ]
    together = sorted(rows[0].rollout.text for part in four for rows in part.of_step(4))
    assert together == sorted(rows[0].rollout.text for rows in one.of_step(4))


def test_what_cannot_be_resumed_is_refused(make_problems, tmp_path):
    examples = make_problems(4)
    save_rollouts(tmp_path, batch_of(examples), 0, 2)
    with pytest.raises(CheckpointError, match="holds the rollouts of 1 of 2 processes"):
        load_rollouts(tmp_path, examples, rank=0, num_ranks=2, accumulation=2)
    save_rollouts(tmp_path, batch_of(examples), 1, 2)
    with pytest.raises(CheckpointError, match=r"4 micro-batches .* 2 process.*now it would be 2"):
        load_rollouts(tmp_path, examples, rank=0, num_ranks=1, accumulation=2)
    with pytest.raises(CheckpointError, match="example 'add-0' is not in the dataset any more"):
        load_rollouts(tmp_path, examples[1:], rank=0, num_ranks=2, accumulation=2)


def test_examples_of_one_id_are_told_by_their_prompts(tmp_path):
    examples = [Example("same", [{"role": "user", "content": text}]) for text in ("one?", "two?")]
    save_rollouts(tmp_path, batch_of(examples), 0, 1)
    loaded = load_rollouts(tmp_path, examples, rank=0, num_ranks=1, accumulation=2)
    assert [row.example for row in loaded.rows] == examples


def test_fewer_examples_than_a_block_are_enough_for_a_step():
    order = list(RepeatedBlocks(3, block=4, step=2, repeats=2, seed=1))
    assert len(order) == 4
    assert order[:2] == order[2:]
