"""The kernels' merge as the row passes call it: slices of a vocabulary joined first, a gate in the
epilogue.

Shape letters: C tokens of the chunk, K ids per token.
"""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sdkernels.kernels.merge import RULES, GateThresholds, merge
from sdkernels.rows.interface import RowGate, RowSpec
from sdkernels.rows.partials import Partials


def columns(ids_CK: Tensor | None, spec: RowSpec) -> Tensor | None:
    """Ids as columns of the slab, contiguous; those of other slices fall outside of it."""
    if ids_CK is None or spec.shard is None:
        return ids_CK
    return spec.shard.local(ids_CK)


def merged(
    sums: Partials,
    vocab: int,
    ids_CK: Tensor | None,
    spec: RowSpec,
    gate: RowGate | None,
    parts_of: Callable[[int], int],
) -> tuple[dict[str, Tensor], Tensor]:
    """Statistics and numbers per row, of all slices of the vocabulary, and `direction`."""
    if spec.shard is not None:
        columns_CK, shard = columns(ids_CK, spec), spec.shard
        held = [
            None if item is None or columns_CK is None else _held(item, columns_CK, vocab)
            for item in (sums.chosen_CK, sums.teacher_chosen_CK)
        ]
        sums = shard.join(Partials(sums.partials_CFP, *held), parts_of)
        vocab = shard.total
    thresholds = _thresholds(gate)
    stats, rows_CN = merge(
        sums.partials_CFP,
        vocab=vocab,
        ids_CK=ids_CK,
        chosen_CK=sums.chosen_CK,
        teacher_chosen_CK=sums.teacher_chosen_CK,
        gate=thresholds,
    )
    if gate is not None and thresholds is None:
        stats["direction"] = gate.direction(stats["entropy"], gate.tau_C, gate.sigma_C)
    return stats, rows_CN


def _held(chosen_CK: Tensor, columns_CK: Tensor, vocab: int) -> Tensor:
    """0 where the slice does not hold the id: the kernel writes nothing there."""
    return chosen_CK.masked_fill((columns_CK < 0) | (columns_CK >= vocab), 0.0)


def _thresholds(gate: RowGate | None) -> GateThresholds | None:
    """The gate as the merge's epilogue takes it; None where only its own function will do."""
    if gate is None or gate.rule not in RULES or gate.tau_C is None:
        return None
    if gate.rule == "tanh" and gate.sigma_C is None:
        return None  # its function says what is missing
    sigma_C = None if gate.sigma_C is None else gate.sigma_C.float().contiguous()
    return GateThresholds(gate.rule, gate.tau_C.float().contiguous(), sigma_C)
