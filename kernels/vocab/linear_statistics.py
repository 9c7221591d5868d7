"""Statistics of one model without its logits in memory: matrix product and online softmax in one.

A program takes a block of tokens and a part of the vocabulary, forms one tile of logits after the
other in registers (D is summed in float32), and folds each into running sums by

    m' = max(m, max z)   a = exp(m - m')   x = z - m'   e = exp x
    sum e <- a sum e + sum e                 sum e x <- a (sum e x + (m - m') sum e) + sum e x

with m' taken as 0 while everything is -inf. What it writes are `partials`, so `merge` finishes them
like those of a slab. 2 T D V floating point operations; reads the weight once per GROUP blocks of
tokens; writes 3 floats a token and part. Gradients are not possible without the logits: this is for
old-policy, reference and teacher passes and for the entropies of a gate.

Shape letters: T tokens, D hidden, V vocabulary, K ids a token, P parts.
"""
# mypy: disallow-untyped-defs=False

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from .configs import MOST_IDS, LinearConfig, architecture, linear_config, shared_limit
from .launch import on_device
from .partials import MAX, STUDENT_FIELDS, SUM, SUM_X
from .statistics import Partials
from .transform import bounded, factors, guarded, short_exp, times, transformed


@triton.jit
def _block_and_part(tokens, parts, TOKENS_TILE: tl.constexpr, GROUP: tl.constexpr):
    """Programs that run together share a few parts of the weight and GROUP blocks of tokens, so
    that both stay in the L2 cache.
    """
    program = tl.program_id(0)
    blocks = tl.cdiv(tokens, TOKENS_TILE)
    first = (program // (GROUP * parts)) * GROUP
    size = tl.minimum(blocks - first, GROUP)
    within = program % (GROUP * parts)
    return first + within % size, within // size


@triton.jit
def _logit_tile(
    hidden_ptrs,  # [TOKENS_TILE, HIDDEN_TILE], at column 0
    weight_ptrs,  # [VOCAB_TILE, HIDDEN_TILE], at column 0
    columns,
    HIDDEN: tl.constexpr,
    TOKENS_TILE: tl.constexpr,
    VOCAB_TILE: tl.constexpr,
    HIDDEN_TILE: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """hidden @ weight.T of one tile, in float32."""
    total = tl.zeros((TOKENS_TILE, VOCAB_TILE), tl.float32)
    for start in range(0, HIDDEN, HIDDEN_TILE):
        if HIDDEN % HIDDEN_TILE == 0:
            hidden = tl.load(hidden_ptrs + start)
            weight = tl.load(weight_ptrs + start)
        else:
            valid = (start + columns < HIDDEN)[None, :]
            hidden = tl.load(hidden_ptrs + start, mask=valid, other=0.0)
            weight = tl.load(weight_ptrs + start, mask=valid, other=0.0)
        total = tl.dot(hidden, weight.T, total, input_precision=PRECISION)
    return total


@triton.jit(do_not_specialize=["tokens"], do_not_specialize_on_alignment=["ids_ptr"])
def linear_statistics_kernel(
    hidden_ptr,  # [T, D]
    weight_ptr,  # [V, D]
    bias_ptr,  # [V] or None
    ids_ptr,  # [T, K] or None
    partials_ptr,  # [T, F, P]
    chosen_ptr,  # [T, K] or None
    hidden_stride,
    weight_stride,
    tokens,
    vocab,
    parts,
    pre,
    post,
    HIDDEN: tl.constexpr,
    FIELDS: tl.constexpr,
    NUM_IDS: tl.constexpr,
    TILES: tl.constexpr,
    TOKENS_TILE: tl.constexpr,
    VOCAB_TILE: tl.constexpr,
    HIDDEN_TILE: tl.constexpr,
    GROUP: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """One program for each block of tokens and part of TILES tiles."""
    block, part = _block_and_part(tokens, parts, TOKENS_TILE, GROUP)
    # 64-bit to the block, 32-bit inside it: offsets of single rows would fill the registers.
    top = block.to(tl.int64) * TOKENS_TILE
    slots = tl.arange(0, TOKENS_TILE)
    mine = slots < tokens - top
    columns = tl.arange(0, HIDDEN_TILE)
    # Rows past the end are read from the block's first one; nothing of them is written.
    row_offsets = tl.where(mine, slots, 0)[:, None] * hidden_stride + columns[None, :]
    hidden_ptrs = hidden_ptr + top * hidden_stride + row_offsets
    if ids_ptr is not None:
        ids_ptr += top * NUM_IDS
        chosen_ptr += top * NUM_IDS

    pivot = tl.full((TOKENS_TILE,), float("-inf"), tl.float32)
    mass = tl.zeros((TOKENS_TILE,), tl.float32)
    sum_x = tl.zeros((TOKENS_TILE,), tl.float32)
    for tile in range(TILES):
        first = (part * TILES + tile) * VOCAB_TILE
        cols = first + tl.arange(0, VOCAB_TILE)
        valid = cols < vocab
        start = tl.minimum(first, vocab - 1)
        within = tl.minimum(cols, vocab - 1) - start
        weight_offsets = within[:, None] * weight_stride + columns[None, :]
        weight_ptrs = weight_ptr + start.to(tl.int64) * weight_stride + weight_offsets
        raw = _logit_tile(
            hidden_ptrs,
            weight_ptrs,
            columns,
            HIDDEN,
            TOKENS_TILE,
            VOCAB_TILE,
            HIDDEN_TILE,
            PRECISION,
        )
        z, _ = transformed(raw, bias_ptr, cols[None, :], valid[None, :], pre, post)
        higher = tl.maximum(pivot, tl.max(z, 1))
        distance = pivot - guarded(higher)
        rescale = short_exp(bounded(distance))
        x = bounded(z - guarded(higher)[:, None])
        e = short_exp(x)
        sum_x = rescale * sum_x + times(rescale * mass, distance) + tl.sum(e * x, 1)
        mass = rescale * mass + tl.sum(e, 1)
        pivot = higher
        for k in tl.static_range(NUM_IDS):
            ids = tl.load(ids_ptr + slots * NUM_IDS + k, mask=mine, other=-1) - first
            here = (ids >= 0) & (ids < tl.minimum(VOCAB_TILE, vocab - first))
            place = tl.where(here, ids, -1).to(tl.int32)
            found = tl.arange(0, VOCAB_TILE)[None, :] == place[:, None]
            chosen = tl.sum(tl.where(found, z, 0.0), 1)
            tl.store(chosen_ptr + slots * NUM_IDS + k, chosen, mask=here)
    out_ptrs = partials_ptr + top * (FIELDS * parts) + slots * (FIELDS * parts) + part
    tl.store(out_ptrs + MAX * parts, pivot, mask=mine)
    tl.store(out_ptrs + SUM * parts, mass, mask=mine)
    tl.store(out_ptrs + SUM_X * parts, sum_x, mask=mine)


def most_linear_parts(device: torch.device, dtype: torch.dtype, vocab: int) -> int:
    """Parts that a row of `vocab` logits is cut into at most, whatever the transforms.

    Raises:
        ValueError: as `linear_config`.
    """
    configs = [_config(device, dtype, plain=ids == 0, ids=ids) for ids in (0, 1, MOST_IDS)]
    return max(triton.cdiv(vocab, config.vocab_tile * config.tiles) for config in configs)


def linear_partial_statistics(
    hidden_TD: Tensor,
    weight_VD: Tensor,
    bias_V: Tensor | None = None,
    *,
    scale: float = 1.0,
    softcap: float | None = None,
    temperature: float = 1.0,
    ids_TK: Tensor | None = None,
    config: LinearConfig | None = None,
) -> Partials:
    """Partial sums of softmax(hidden @ weight.T) for `merge`, with no logits in memory.

    Args:
        hidden_TD, weight_VD: of one dtype, float32 (multiplied as float32, not TF32), bfloat16 or
            float16; any strides (columns that are not adjacent are copied, and so are rows so far
            apart that a tile of them spans 2^31 elements).
        ids_TK: int64, at most `MOST_IDS` a token.
        config: for tests; results depend on its tiles in the last bits.

    Raises:
        TypeError: dtypes differ or are not among those.
        ValueError: too many ids, or a device with too little shared memory for any configuration.
    """
    if hidden_TD.dtype != weight_VD.dtype or hidden_TD.dtype not in _PRECISIONS:
        raise TypeError(
            f"hidden is {hidden_TD.dtype}, weight {weight_VD.dtype}: the fused kernel takes one "
            f"dtype for both, of {', '.join(map(str, _PRECISIONS))}"
        )
    num_ids = 0 if ids_TK is None else ids_TK.shape[1]
    if num_ids > MOST_IDS:
        raise ValueError(f"{num_ids} ids a token: the fused kernel takes at most {MOST_IDS}")
    (tokens, hidden), vocab = hidden_TD.shape, weight_VD.shape[0]
    if config is None:
        plain = bias_V is None and softcap is None and ids_TK is None
        config = _config(hidden_TD.device, hidden_TD.dtype, plain=plain, ids=num_ids)
    hidden_TD = _compact(hidden_TD, config.tokens_tile)
    weight_VD = _compact(weight_VD, config.vocab_tile)
    parts = triton.cdiv(vocab, config.vocab_tile * config.tiles)
    new = hidden_TD.new_empty
    partials_TFP = new((tokens, STUDENT_FIELDS, parts), dtype=torch.float32)
    chosen_TK = None if ids_TK is None else new((tokens, num_ids), dtype=torch.float32)
    if tokens == 0:
        return Partials(partials_TFP, chosen_TK, None)
    pre, post = factors(scale, softcap, temperature)
    with on_device(hidden_TD):
        linear_statistics_kernel[(triton.cdiv(tokens, config.tokens_tile) * parts,)](
            hidden_TD,
            weight_VD,
            None if bias_V is None else bias_V.contiguous(),
            None if ids_TK is None else ids_TK.contiguous(),
            partials_TFP,
            chosen_TK,
            hidden_TD.stride(0),
            weight_VD.stride(0),
            tokens,
            vocab,
            parts,
            pre,
            post,
            HIDDEN=hidden,
            FIELDS=STUDENT_FIELDS,
            NUM_IDS=num_ids,
            TILES=config.tiles,
            TOKENS_TILE=config.tokens_tile,
            VOCAB_TILE=config.vocab_tile,
            HIDDEN_TILE=config.hidden_tile,
            GROUP=config.group,
            PRECISION=_PRECISIONS[hidden_TD.dtype],
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            enable_fp_fusion=False,
        )
    return Partials(partials_TFP, chosen_TK, None)


def _config(device: torch.device, dtype: torch.dtype, *, plain: bool, ids: int) -> LinearConfig:
    arch, limit_bytes = architecture(device), shared_limit(device)
    return linear_config(arch, dtype, plain=plain, ids=ids, limit_bytes=limit_bytes)


# TF32 would round float32 factors to 10 bits; 16-bit factors are exact in any of the modes.
_PRECISIONS = {torch.float32: "ieee", torch.bfloat16: "ieee", torch.float16: "ieee"}


def _compact(rows: Tensor, tile: int) -> Tensor:
    """The rows, copied where their columns are not adjacent, or where a tile of them spans so much
    memory that an offset within it is no 32-bit number.
    """
    count, columns = rows.shape
    adjacent = rows.stride(1) == 1 or columns == 1
    last = (min(tile, count) - 1) * rows.stride(0) + columns - 1
    return rows if adjacent and last < 2**31 else rows.contiguous()
