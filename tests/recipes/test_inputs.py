import math
from typing import Any

import pytest
import torch

from sdkernels.recipes import aggregate, group_advantages, skip_first_tokens

MASK = torch.tensor([[1, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)


def test_token_mean() -> None:
    weight = aggregate(MASK, "token_mean")
    assert weight.dtype == torch.float32
    torch.testing.assert_close(weight, MASK / 4.0)


def test_sequence_mean_leaves_out_sequences_without_a_token() -> None:
    """verl's rule; TRL's and CEPO's is the switch."""
    expected = torch.tensor([[1 / 6, 1 / 6, 1 / 6, 0], [0, 1 / 2, 0, 0], [0, 0, 0, 0]])
    torch.testing.assert_close(aggregate(MASK, "sequence_mean"), expected)
    counted = aggregate(MASK, "sequence_mean", count_empty=True)
    torch.testing.assert_close(counted, expected * 2 / 3)


@pytest.mark.parametrize("mode", ["token_mean", "sequence_mean"])
def test_the_weights_give_the_mean(mode: str) -> None:
    loss = torch.randn(3, 4)
    got = (aggregate(MASK, mode) * loss).sum()
    rows = [loss[i][MASK[i]] for i in range(2)]
    expected = torch.cat(rows).mean() if mode == "token_mean" else sum(r.mean() for r in rows) / 2
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("mode", "num_items"), [("token_mean", 4), ("sequence_mean", 2)])
@pytest.mark.parametrize("as_tensor", [True, False])
def test_parts_add_up_to_the_whole(mode: str, num_items: int, as_tensor: bool) -> None:
    """One big batch equals its rows accumulated one by one, empty row included."""
    total: Any = torch.tensor(num_items) if as_tensor else num_items
    parts = torch.cat([aggregate(row[None], mode, total) for row in MASK])
    torch.testing.assert_close(parts, aggregate(MASK, mode))


@pytest.mark.parametrize("mode", ["token_mean", "sequence_mean"])
@pytest.mark.parametrize("num_items", [None, 0, 7, torch.tensor(0)])
def test_an_empty_mask_is_0_and_not_nan(mode: str, num_items: Any) -> None:
    for shape in ((2, 3), (0, 3), (2, 0)):
        assert torch.equal(aggregate(torch.zeros(shape), mode, num_items), torch.zeros(shape))


def test_num_items_0_is_0() -> None:
    assert not aggregate(MASK, "token_mean", 0).any()


@pytest.mark.parametrize("dtype", [torch.bool, torch.int64, torch.float32, torch.uint8])
def test_masks_of_any_dtype(dtype: torch.dtype) -> None:
    assert torch.equal(aggregate(MASK.to(dtype), "sequence_mean"), aggregate(MASK, "sequence_mean"))


def test_a_flat_mask_has_tokens_but_no_sequences() -> None:
    torch.testing.assert_close(aggregate(MASK.reshape(-1)), MASK.reshape(-1) / 4.0)
    with pytest.raises(ValueError, match=r"needs \[sequences, tokens\], got \[12\]"):
        aggregate(MASK.reshape(-1), "sequence_mean")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "tokenmean"}, "unknown mode: 'tokenmean'; did you mean 'token_mean'"),
        ({"count_empty": True}, "count_empty=True has an effect with mode='sequence_mean'"),
        ({"num_items": -1}, "num_items=-1 is not accepted"),
        ({"num_items": math.nan}, "num_items=nan is not accepted"),
        ({"num_items": torch.ones(2)}, r"num_items: expected one number, got a tensor of \[2\]"),
    ],
)
def test_bad_arguments_of_aggregate(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        aggregate(MASK, **arguments)


def test_a_mask_that_is_none_is_refused() -> None:
    with pytest.raises(ValueError, match="mask_BL: expected a bool mask or 0 / 1"):
        aggregate(MASK * 0.5)


def test_skip_first_tokens_counts_valid_ones() -> None:
    expected = torch.tensor([[0, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]], dtype=torch.bool)
    assert torch.equal(skip_first_tokens(MASK, 1), expected)
    assert torch.equal(skip_first_tokens(MASK, 0), MASK)
    with pytest.raises(ValueError, match="num_tokens=-1"):
        skip_first_tokens(MASK, -1)


def test_advantages_by_hand() -> None:
    """Rewards 1, 0, 0, 1: mean 1/2, standard deviation with n - 1 is 1/sqrt(3)."""
    rewards = torch.tensor([[1.0, 0.0, 0.0, 1.0]], dtype=torch.float64)
    half = 0.5 * torch.tensor([[1.0, -1.0, -1.0, 1.0]], dtype=torch.float64)
    torch.testing.assert_close(group_advantages(rewards, scale="none"), half)
    torch.testing.assert_close(group_advantages(rewards, eps=0.0), half * math.sqrt(3))
    torch.testing.assert_close(group_advantages(rewards, eps=0.1), half / (1 / math.sqrt(3) + 0.1))


def test_advantages_per_row_are_torchs() -> None:
    rewards = torch.randn(5, 7, dtype=torch.float64)
    mean, std = rewards.mean(1, keepdim=True), rewards.std(1, keepdim=True)
    torch.testing.assert_close(group_advantages(rewards), (rewards - mean) / (std + 1e-6))


@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("reward", [0.1, 1.0, 1e8, -1 / 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_all_equal_group_is_exactly_0(scale: str, reward: float, dtype: torch.dtype) -> None:
    """The mean of six 0.1 is not 0.1, and 1 / eps would blow the difference up."""
    rewards = torch.full((1, 6), reward, dtype=dtype)
    for eps in (1e-6, 0.0):
        assert not group_advantages(rewards, scale=scale, eps=eps).any()


@pytest.mark.parametrize("scale", ["std", "none"])
def test_a_group_of_one_is_0(scale: str) -> None:
    """Not the raw reward, as in verl."""
    assert not group_advantages(torch.tensor([[3.0], [1.0]]), scale=scale).any()
    alone = group_advantages(torch.tensor([1.0, 0.0, 5.0]), [0, 0, 1], scale=scale)
    assert alone[2] == 0
    assert alone[0] > 0


def test_flat_groups_in_any_order() -> None:
    rewards = torch.rand(3, 4)
    order = torch.randperm(12)
    groups = torch.tensor([70, 70, 70, 70, -1, -1, -1, -1, 8, 8, 8, 8])[order]
    flat = group_advantages(rewards.reshape(-1)[order], groups)
    torch.testing.assert_close(flat, group_advantages(rewards).reshape(-1)[order])


def test_no_rollouts() -> None:
    assert group_advantages(torch.zeros(0, 4)).shape == (0, 4)
    assert group_advantages(torch.zeros(0), []).shape == (0,)


def test_integer_rewards_are_welcome() -> None:
    got = group_advantages(torch.tensor([[1, 0]]), scale="none")
    assert got.dtype == torch.float32
    assert got.tolist() == [[0.5, -0.5]]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.ones(4),), "flat rewards need groups="),
        ((torch.ones(4), [0, 1]), r"groups: expected the shape of rewards.*\[2\].*\[4\]"),
        ((torch.ones(2, 2), torch.ones(2, 2)), "groups: expected the shape of rewards"),
        ((torch.tensor([[0.0, math.nan]]),), r"entry 1 \(of 2, flattened\) is nan"),
    ],
)
def test_bad_rewards(arguments: tuple[Any, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        group_advantages(*arguments)


def test_bad_scale_and_eps() -> None:
    with pytest.raises(ValueError, match="unknown scale: 'stdev'; did you mean 'std'"):
        group_advantages(torch.ones(1, 2), scale="stdev")
    with pytest.raises(ValueError, match="eps=-1"):
        group_advantages(torch.ones(1, 2), eps=-1)


def test_small_differences_of_large_rewards_count() -> None:
    rewards = torch.tensor([[1e9, 1e9 + 1]], dtype=torch.float64)
    assert group_advantages(rewards, scale="none").tolist() == [[-0.5, 0.5]]
