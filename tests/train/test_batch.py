"""Packing rows into tensors."""

from __future__ import annotations

import pytest
import torch
from helpers.train_rows import CPU, row

from sdkernels.train.batch import collate, mask_rows, set_weights
from sdkernels.train.records import row_columns
from sdkernels.train.sides import check_same_responses


def test_the_index_points_at_the_state_before_each_response_token():
    rows = [row([1, 2, 3], [10, 11], [7]), row([4], [12, 13, 14], [8, 9])]
    batch = collate(rows, 99, CPU, with_teacher=True)
    assert batch.student.input_ids.tolist() == [[1, 2, 3, 10, 11], [4, 12, 13, 14, 99]]
    assert batch.student.attention_mask.tolist() == [[1] * 5, [1, 1, 1, 1, 0]]
    before = batch.student.input_ids.reshape(-1)[batch.student.index_N]
    assert before.tolist() == [3, 10, 4, 12, 13]
    before = batch.teacher.input_ids.reshape(-1)[batch.teacher.index_N]
    assert before.tolist() == [7, 10, 9, 12, 13]
    assert batch.target_N.tolist() == [10, 11, 12, 13, 14]
    assert batch.student.position_ids.tolist() == [[0, 1, 2, 3, 4], [0, 1, 2, 3, 3]]


def test_unpack_and_pack_are_inverse():
    batch = collate([row([1], [10, 11]), row([1], [12, 13, 14])], 99, CPU, with_teacher=False)
    values = torch.arange(1.0, 6.0)
    assert batch.unpack(values).tolist() == [[1, 2, 0], [3, 4, 5]]
    assert torch.equal(batch.pack(batch.unpack(values)), values)


def test_rows_without_tokens_are_left_out_unless_nothing_remains():
    silent = row([1, 1], [10], counts=[False])
    loud = row([2, 2], [11, 12], advantage=0.5)
    batch = collate([silent, loud], 99, CPU, with_teacher=False)
    assert batch.rows == [loud]
    assert batch.advantage_N.tolist() == [0.5, 0.5]
    # A micro-batch of nothing but silence still runs forward and backward, over no token.
    batch = collate([silent, silent], 99, CPU, with_teacher=True)
    assert (batch.rows, batch.num_tokens) == ([silent], 0)


def test_different_responses_are_caught():
    one = collate([row([1], [10, 11], [5])], 99, CPU, with_teacher=True)
    other = collate([row([1], [10, 12], [5])], 99, CPU, with_teacher=True)
    with pytest.raises(AssertionError, match="different response ids"):
        check_same_responses(one.student, other.teacher)


def test_which_tokens_count():
    rows = [
        row([1], [10, 11, 12], [2]),
        row([1], [10, 11], None),
        row([1], [10, 11], [2], truncated=True),
    ]

    def counts(**settings):
        settings = {"need_teacher": True, "skip_truncated": False, "skip_first": 0} | settings
        return mask_rows(rows, **settings).int().tolist()

    assert counts() == [[1, 1, 1], [0, 0, 0], [1, 1, 0]]
    assert counts(need_teacher=False) == [[1, 1, 1], [1, 1, 0], [1, 1, 0]]
    assert counts(skip_truncated=True) == [[1, 1, 1], [0, 0, 0], [0, 0, 0]]
    assert counts(skip_first=2) == [[0, 0, 1], [0, 0, 0], [0, 0, 0]]


def test_weights_are_cut_to_the_rows():
    rows = [row([1], [10, 11, 12]), row([1], [10])]
    mask = torch.tensor([[True, False, True], [True, False, False]])
    set_weights(rows, mask, mask * 0.25)
    assert rows[0].weights == [0.25, 0.0, 0.25]
    assert (rows[1].weights, rows[1].counts) == ([0.25], [True])


def test_rollouts_that_repeat_each_other_are_rows_of_their_own():
    """A prompt that stands twice in a batch may get the same response twice; with recorded
    log-probs even asking for the place of a row would compare tensors.
    """
    rows = [row([1], [10, 11], old_logp=torch.zeros(2)) for _ in range(2)]
    batch = collate(rows, 99, CPU, with_teacher=False)
    columns = row_columns(batch, {"logp": torch.arange(4.0)}, batch.rows[1])
    assert columns["logp"].tolist() == [2.0, 3.0]


def test_skipped_first_tokens_and_those_before_the_error_may_be_the_same():
    rows = [row([1], [10, 11, 12, 13, 14], [2], error_start=start) for start in (0, 1, 3)]
    mask = mask_rows(rows, need_teacher=True, skip_truncated=False, skip_first=2)
    assert mask.int().tolist() == [[0, 0, 1, 1, 1], [0, 0, 1, 1, 1], [0, 0, 0, 1, 1]]


def test_only_what_was_verified_is_a_success():
    rows = [row([1], [10], [2]) for _ in range(3)]
    for each, verdict in zip(rows, (True, False, None), strict=True):
        each.rollout.success = verdict
    assert collate(rows, 99, CPU, with_teacher=True).success_N.tolist() == [1, 0, 0]


def test_a_teacher_with_the_students_prompt_has_a_context():
    """As `none` has: no context is another thing than one that says nothing."""
    rows = [row([1, 2], [10], [1, 2]), row([1, 2], [11], None)]
    assert collate(rows, 99, CPU, with_teacher=True).signal_N.tolist() == [1, 0]


def test_contrasting_prompts_belong_to_the_rows_that_are_left():
    rows = [
        row([1], [10, 11], [2], counts=[False, False], negative_prompt_ids=[[5], [6]]),
        row([1], [12], [2]),
        row([1], [13, 14], [2], negative_prompt_ids=[[7]]),
    ]
    (negative,) = collate(rows, 99, CPU, with_teacher=True).negatives
    assert negative.token_n.tolist() == [1, 2]
    assert negative.side.input_ids.tolist() == [[7, 13, 14]]
    assert collate(rows, 99, CPU, with_teacher=False).negatives == []
