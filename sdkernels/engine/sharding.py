"""Vocabulary-parallel heads: every process of a group holds some rows of one output projection.

Hidden states, targets, masks and everything else per token are the same on all of them; what is
split is the vocabulary. Statistics, losses and hidden gradients come out complete and equal on
every process, weight gradients belong to its own rows.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from sdkernels.engine.chunks import default_chunk_bytes
from sdkernels.rows.shard import VocabShard, gather


def vocab_shard(
    weight: Tensor,
    bias: Tensor | None,
    valid_vocab: int | None,
    group: Any,
    vocab_offset: int | None,
) -> VocabShard:
    """The slice of this process, after all of them have told each other what they hold.

    Raises:
        ValueError: one of `group` and `vocab_offset` without the other, no such group here, slices
            that overlap or leave a gap, other hidden sizes, some trainable and others frozen, or a
            slice of padding only.
    """
    rows = weight.shape[0]
    if group is None:
        raise ValueError(
            f"vocab_offset={vocab_offset!r} without group=: pass the process group whose members "
            "hold the other rows of the head"
        )
    if not dist.is_available() or not dist.is_initialized():
        raise ValueError("group: torch.distributed is not initialised; call init_process_group")
    rank = dist.get_rank(group)
    if rank < 0:
        raise ValueError("group: this process is not a member of it")
    if isinstance(vocab_offset, bool) or not isinstance(vocab_offset, int) or vocab_offset < 0:
        raise ValueError(
            f"vocab_offset={vocab_offset!r} with group=: expected the vocabulary id of the first "
            f"of this rank's {rows} rows, a whole number from 0"
        )
    mine = [_trains(weight), _trains(bias), vocab_offset, rows, weight.shape[1]]
    mine += [default_chunk_bytes(weight.device), -1 if valid_vocab is None else valid_vocab]
    told = gather(torch.tensor(mine, device=weight.device), group).tolist()
    for name, trains in (("weight", [row[0] for row in told]), ("bias", [row[1] for row in told])):
        _check_trains(name, trains)
    held = [row[2:] for row in told]
    total = _check_cover([(offset, offset + count) for offset, count, *_ in held])
    if len({size for _, _, size, *_ in held}) > 1:
        raise ValueError(
            f"weight: hidden sizes by rank are {[size for _, _, size, *_ in held]}; they must agree"
        )
    if len({valid for *_, valid in held}) > 1:
        raise ValueError(
            f"valid_vocab by rank is {[valid for *_, valid in held]} (-1: None): pass the number "
            "of real entries of the whole vocabulary on every rank"
        )
    if valid_vocab is not None:
        if isinstance(valid_vocab, bool) or not 1 <= valid_vocab <= total:
            raise ValueError(
                f"valid_vocab={valid_vocab!r}: expected a whole number from 1 to V = {total} of "
                "all ranks together, or None for all"
            )
        total = valid_vocab
    sizes = tuple(min(count, total - offset) for offset, count, *_ in held)
    for other, size in enumerate(sizes):
        if size <= 0:
            raise ValueError(
                f"valid_vocab={valid_vocab}: rank {other} would hold padding only, from entry "
                f"{held[other][0]} on; split the vocabulary more evenly"
            )
    return VocabShard(group, vocab_offset, sizes, total, min(row[3] for row in held))


def _check_trains(name: str, trains: list[int]) -> None:
    if len(set(trains)) > 1:
        raise ValueError(
            f"{name}.requires_grad by rank is {list(map(bool, trains))}: a backward pass would "
            "wait for ever, since some ranks take part in it and others don't; train or freeze the "
            "head on all of them"
        )


def _check_cover(ranges: list[tuple[int, int]]) -> int:
    """The number of entries that the ranges cover, each once."""
    end = 0
    for first, last in sorted(ranges):
        if first != end:
            problem = "overlap" if first < end else f"leave a gap ({end} to {first - 1})"
            raise ValueError(f"vocab_offset: the slices by rank, {ranges}, {problem}")
        end = last
    return end


def check_same_everywhere(
    shard: VocabShard,
    sources: dict[str, Tensor | None],
    tensors: dict[str, Tensor | None],
    settings: dict[str, float],
) -> None:
    """Raise on every rank if what must be the same on all of them is not; costs a synchronisation.

    Args:
        sources: what may get a gradient, which decides on the collectives of a backward pass, so
            that ranks that differ would wait for one another.
        tensors: compared by value, at the price of a copy in float64.
        settings: numbers.
    """
    numbers = {
        f"{name}.requires_grad": float(torch.is_grad_enabled() and _trains(tensor))
        for name, tensor in sources.items()
    }
    numbers |= settings
    numbers |= {name: _fingerprint(tensor) for name, tensor in tensors.items()}
    device = next(tensor.device for tensor in sources.values() if tensor is not None)
    mine = torch.tensor(list(numbers.values()), dtype=torch.float64, device=device)
    every_WN = gather(mine, shard.group)
    # NaN is not equal to itself, and a NaN everywhere is no difference.
    same_N = (every_WN.nan_to_num(0.0) == every_WN[0].nan_to_num(0.0)).all(0)
    wrong = [name for name, same in zip(numbers, same_N.tolist(), strict=True) if not same]
    if wrong:
        raise ValueError(
            f"{', '.join(wrong)}: not the same on all ranks of the head's group; every rank must "
            "pass the same tokens and settings, and train or freeze the same tensors"
        )


def _trains(tensor: Tensor | None) -> bool:
    return tensor is not None and tensor.requires_grad


def _fingerprint(tensor: Tensor | None) -> float:
    if tensor is None or not tensor.numel():
        return -1.0
    values = tensor.detach().reshape(-1).double()
    # Weighted, so that another order shows.
    places = torch.arange(1, len(values) + 1, device=values.device, dtype=values.dtype)
    return float((values * places).sum())
