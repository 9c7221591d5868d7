"""Errors of vocabulary-parallel heads that one process sees; see tests/rows/test_shard.py too."""

import pytest
import torch

import sdkernels as sd
from sdkernels.engine.library import statistics
from sdkernels.engine.sharding import _check_cover
from sdkernels.rows.shard import VocabShard

WEIGHT = torch.ones(5, 3)


def test_an_offset_needs_a_group_and_a_group_that_exists() -> None:
    with pytest.raises(ValueError, match="vocab_offset=5 without group="):
        sd.LMHead(WEIGHT, vocab_offset=5)
    with pytest.raises(ValueError, match="call init_process_group"):
        sd.LMHead(WEIGHT, group=object(), vocab_offset=0)


@pytest.mark.parametrize(
    ("ranges", "message"),
    [
        ([(0, 5), (4, 9)], "overlap"),
        ([(0, 5), (6, 9)], r"leave a gap \(5 to 5\)"),
        ([(2, 5), (5, 9)], r"leave a gap \(0 to 1\)"),
    ],
)
def test_slices_must_cover_the_vocabulary_once(ranges: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        _check_cover(ranges)


def test_slices_may_come_in_any_order_of_ranks() -> None:
    assert _check_cover([(5, 9), (0, 5)]) == 9


def test_a_split_head_is_refused_inside_compile_with_the_way_out() -> None:
    head = sd.LMHead(WEIGHT)
    head.shard = VocabShard(None, 0, (5, 4), 9, 1 << 28)
    assert (head.vocab, head.total_vocab) == (5, 9)
    with pytest.raises(TypeError, match=r"torch\.compiler\.disable"):
        statistics(("entropy",), torch.ones(2, 3), head)
