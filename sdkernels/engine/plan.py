"""What a `token_loss` will cost on a GPU, counted from the schedule that the engine follows.

Nothing is run and no tensor is made: chunks come from the planner that the engine itself calls,
the rest is one line for each matrix product and each kernel of a chunk. `tests/engine/test_plan.py`
ties every number to a run: products as torch counts them, launches and bytes as the kernels get
them.

Shape letters: T tokens, D hidden, V vocabulary, C tokens of a chunk.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from sdkernels.engine.chunks import (
    ChunkPlan,
    logits_gradient_dtype,
    plan_chunks,
    share_of_memory,
    token_bytes,
)
from sdkernels.engine.linear import cast_rows_within
from sdkernels.engine.stats import DIFFERENTIABLE
from sdkernels.kernels import triton_reason
from sdkernels.rows import RowSpec, slab_columns

TEACHERS = ("hidden", "logits", None)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
# One H200, on which the targets of the project are set.
DEVICE_MEMORY_BYTES = 141 * 10**9

_PAIR = ("kl_teacher_student", "kl_student_teacher", "jsd", "clipped_kl_teacher_student")
_MIXTURE = ("jsd", "clipped_kl_teacher_student")
_LISTED = ("logp", "topk_logp")
# Without a teacher of its own ids, which is not planned for, these take the student's top k.
_TOPK = ("topk_logp",)


@dataclass(frozen=True)
class LossPlan:
    """The schedule of one `token_loss`, forward and backward, on the Triton rows.

    Attributes:
        gemm_flops: floating point operations of all matrix products.
        chunk_bytes: the budget that the chunks were made for.
        slab_bytes: logits of a chunk, and its gradient where that has memory of its own.
        bytes_per_logit: bytes moved for each of the T x V positions, by pass: what the logit
            products write, and what the row kernels read and write. What the gradient products
            read is part of a matrix product and not counted, nor what torch.topk reads again.
        launches_per_chunk: kernels, products and calls of torch.topk by name. Operations on tensors
            of size C, such as the loss function's own, are not counted.
    """

    tokens: int
    hidden_size: int
    vocab: int
    gemm_flops: int
    chunks: ChunkPlan
    chunk_bytes: int
    slab_bytes: int
    bytes_per_logit: dict[str, int]
    launches_per_chunk: dict[str, int]

    @property
    def launches(self) -> int:
        """Kernels and products of all chunks; sums are not rescaled before the first."""
        each = sum(self.launches_per_chunk.values())
        return self.chunks.count * each - self.launches_per_chunk.get("rescale", 0)

    @property
    def moved_bytes(self) -> int:
        """Bytes moved by all passes over the logits."""
        return self.tokens * self.vocab * sum(self.bytes_per_logit.values())


def plan_loss(
    tokens: int,
    hidden_size: int,
    vocab: int,
    *,
    uses: tuple[str, ...] = ("kl_teacher_student",),
    teacher: str | None = "hidden",
    teacher_hidden_size: int | None = None,
    shared_head: bool = False,
    trainable_head: bool = True,
    trainable_hidden: bool = True,
    dtype: torch.dtype = torch.bfloat16,
    slab_dtype: str = "float32",
    chunk_bytes: int | None = None,
    device_memory_bytes: int = DEVICE_MEMORY_BYTES,
) -> LossPlan:
    """Count the work of `token_loss` for T = `tokens`, D = `hidden_size`, V = `vocab` on a GPU.

    Args:
        uses: the statistics that the loss depends on (fields of `TokenStats` with a gradient).
        teacher: "hidden" (its logits are made here), "logits" (they exist, in `dtype`), or None.
        teacher_hidden_size: length of its hidden states, if it is not D.
        shared_head: the teacher's head is the student's: both are projected by one product.
        trainable_head, trainable_hidden: what a gradient is wanted for.
        dtype: of hidden states and weights.
        slab_dtype: as in `token_loss`.
        chunk_bytes: as in `token_loss`; None: the default of a device with `device_memory_bytes`.

    Raises:
        ValueError: a setting out of its range, or statistics of a teacher without one.
    """
    _check(uses, teacher, dtype, slab_dtype)
    teacher_size = 0
    if teacher == "hidden":
        teacher_size = hidden_size if teacher_hidden_size is None else teacher_hidden_size
    if shared_head and teacher_size != hidden_size:
        raise ValueError(
            f"shared_head=True needs teacher='hidden' of the student's hidden size {hidden_size}"
        )
    dz_dtype = logits_gradient_dtype("triton", dtype, dtype)
    spec = RowSpec(torch.float32, gradient_dtype=dz_dtype)
    slab = torch.float32 if slab_dtype == "float32" else dtype
    budget = share_of_memory(device_memory_bytes) if chunk_bytes is None else chunk_bytes
    cast_rows = cast_rows_within(budget, max(hidden_size, teacher_size), spec.compute_dtype)
    columns = slab_columns(vocab)
    cost = token_bytes(
        vocab=columns,
        hidden_size=hidden_size,
        teacher_size=teacher_size,
        slab_dtype=slab,
        spec=spec,
        cast_rows=cast_rows,
    )
    chunks = plan_chunks(tokens, cost, lambda count: _scratch_bytes(count, columns), budget)
    grows = trainable_head or trainable_hidden
    dz = dz_dtype or slab
    slab_bytes = slab.itemsize * (2 if teacher_size else 1)
    if grows and dz != slab:
        slab_bytes += dz.itemsize
    products = hidden_size * (1 + trainable_hidden + trainable_head) + teacher_size
    return LossPlan(
        tokens=tokens,
        hidden_size=hidden_size,
        vocab=vocab,
        gemm_flops=2 * tokens * vocab * products,
        chunks=chunks,
        chunk_bytes=budget,
        slab_bytes=chunks.chunk_tokens * columns * slab_bytes,
        bytes_per_logit=_bytes_per_logit(uses, teacher, dtype, slab, dz, grows),
        launches_per_chunk=_launches(
            uses,
            logit_products=2 if teacher_size and not shared_head else 1,
            gradient_products=trainable_hidden + trainable_head,
            rescaled=trainable_head and dz == torch.float16,
            topk_calls=_topk_calls(chunks.chunk_tokens, vocab),
        ),
    )


def _check(uses: tuple[str, ...], teacher: str | None, dtype: torch.dtype, slab_dtype: str) -> None:
    unknown = [name for name in uses if name not in DIFFERENTIABLE]
    if unknown or not uses:
        raise ValueError(f"uses={uses!r}: expected one or more of {', '.join(DIFFERENTIABLE)}")
    if teacher not in TEACHERS:
        raise ValueError(f"teacher={teacher!r}: accepted are 'hidden', 'logits' and None")
    pair = [name for name in uses if name in _PAIR]
    if pair and teacher is None:
        raise ValueError(f"uses={uses!r}: {', '.join(pair)} needs a teacher")
    if dtype not in DTYPES:
        raise ValueError(f"dtype={dtype}: accepted are {', '.join(map(str, DTYPES))}")
    if slab_dtype not in ("float32", "model"):
        raise ValueError(f"slab_dtype={slab_dtype!r}: accepted are 'float32' and 'model'")


def _scratch_bytes(tokens: int, vocab: int) -> int:
    reason = triton_reason()
    if reason is not None:
        raise ValueError(f"the plan is that of the Triton rows (no GPU needed): {reason}")
    from sdkernels.rows.triton_rows import TritonRows

    return TritonRows().scratch_bytes(tokens, vocab, RowSpec(torch.float32))


def _topk_calls(tokens: int, vocab: int) -> int:
    from sdkernels.rows.triton_rows import topk_rows_at_once

    return -(-tokens // topk_rows_at_once(vocab))


def _bytes_per_logit(
    uses: tuple[str, ...],
    teacher: str | None,
    dtype: torch.dtype,
    slab: torch.dtype,
    dz_dtype: torch.dtype,
    grows: bool,
) -> dict[str, int]:
    made = slab.itemsize * (2 if teacher == "hidden" else 1)
    read = slab.itemsize
    if teacher is not None:
        read += slab.itemsize if teacher == "hidden" else dtype.itemsize
    found = {"products": made}
    if any(name in _TOPK for name in uses):
        # It is found in float32: another slab is read, written as that, and read again.
        copied = 0 if slab == torch.float32 else slab.itemsize + torch.float32.itemsize
        found["topk"] = copied + torch.float32.itemsize
    found["statistics"] = read
    if any(name in _MIXTURE for name in uses):
        found["mixture"] = read
    if grows:
        pair = any(name in _PAIR for name in uses)
        found["gradient"] = (read if pair else slab.itemsize) + dz_dtype.itemsize
    return found


def _launches(
    uses: tuple[str, ...],
    *,
    logit_products: int,
    gradient_products: int,
    rescaled: bool,
    topk_calls: int,
) -> dict[str, int]:
    found = {"product": logit_products + gradient_products, "statistics": 1, "merge": 1}
    if any(name in _TOPK for name in uses):
        found["topk"] = topk_calls
    if any(name in _MIXTURE for name in uses):
        found |= {"mixture": 1, "merge_mixture": 1}
    if gradient_products:
        found["gradient"] = 1
        if any(name in _LISTED for name in uses):
            found |= {"chosen": 1, "put": 1}
        if rescaled:
            found["rescale"] = 1
    return found
