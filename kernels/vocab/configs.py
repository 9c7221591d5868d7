"""Launch settings: a table keyed by architecture and size bucket, never by timing.

What a kernel computes depends on the width of its tiles (the order of summation does), so the same
machine and vocabulary always get the same row of the table: results are reproducible across
processes, and neither the number of tokens nor anything measured enters.

The rows were chosen by the compiler's report (`make aot`: registers, no spills, shared memory) and
by arithmetic; they have not been timed on a GPU yet.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RowConfig:
    """Columns per program and warps of the row kernels."""

    tile: int
    num_warps: int


# A tile stays in registers, 16 columns a thread and model: with fewer the sums across threads cost
# as much as the columns, more take registers from the programs that would hide each other's loads.
# A smaller vocabulary gets the smallest tile that holds it.
STATISTICS_CONFIGS = (RowConfig(256, 1), RowConfig(1024, 2), RowConfig(2048, 4))
ELEMENTWISE_CONFIGS = (RowConfig(256, 1), RowConfig(1024, 2), RowConfig(2048, 4))


def statistics_config(vocab: int) -> RowConfig:
    """For the statistics kernel."""
    return _smallest(vocab, STATISTICS_CONFIGS)


def elementwise_config(vocab: int) -> RowConfig:
    """For the gradient and mixture kernels."""
    return _smallest(vocab, ELEMENTWISE_CONFIGS)


def _smallest(vocab: int, configs: tuple[RowConfig, ...]) -> RowConfig:
    return next((config for config in configs if config.tile >= vocab), configs[-1])


@dataclass(frozen=True)
class LinearConfig:
    """Tiles of the fused linear kernel: tokens x vocabulary, columns of hidden at a time, tiles a
    part, blocks of tokens that share a part of the weight.
    """

    tokens_tile: int
    vocab_tile: int
    hidden_tile: int
    num_warps: int
    num_stages: int
    tiles: int = 16
    group: int = 16

    def shared_bytes(self, dtype: torch.dtype) -> int:
        """Shared memory that a block needs at most: a tile of both factors for each stage, and a
        little for barriers and alignment.
        """
        tile = (self.tokens_tile + self.vocab_tile) * self.hidden_tile * dtype.itemsize
        return tile * self.num_stages + 1024


# The accumulator and its exponentials must fit into registers, the stages into shared memory.
_SMALL = LinearConfig(128, 128, 32, num_warps=8, num_stages=3)
_LINEAR_16_BIT = {
    "sm_80": LinearConfig(128, 128, 64, num_warps=8, num_stages=3),
    "sm_90": LinearConfig(128, 128, 64, num_warps=8, num_stages=4),
    "sm_100": LinearConfig(128, 128, 64, num_warps=8, num_stages=4),
    "gfx942": LinearConfig(128, 128, 32, num_warps=8, num_stages=2),
    "gfx950": LinearConfig(128, 128, 32, num_warps=8, num_stages=2),
    "interpreter": LinearConfig(64, 128, 64, num_warps=4, num_stages=1, tiles=2),
}
# Without bias, softcap and chosen ids there are registers left for twice the tile.
_LINEAR_16_BIT_PLAIN = {
    "sm_90": LinearConfig(128, 256, 64, num_warps=8, num_stages=3, tiles=8),
    "sm_100": LinearConfig(128, 256, 64, num_warps=8, num_stages=3, tiles=8),
}
# Two ids a token and more take registers: half the tile, in parts of the same width.
_LINEAR_16_BIT_SEVERAL_IDS = {
    "sm_90": LinearConfig(128, 64, 64, num_warps=8, num_stages=4, tiles=32),
    # 128 tokens spill under Triton 3.7.
    "sm_100": LinearConfig(64, 64, 64, num_warps=8, num_stages=4, tiles=32),
    "sm_120": LinearConfig(64, 64, 64, num_warps=8, num_stages=2, tiles=32),
    "gfx942": LinearConfig(128, 64, 32, num_warps=8, num_stages=2, tiles=32),
}
_LINEAR_32_BIT = {
    # 32 columns spill under Triton 3.6.
    "sm_90": LinearConfig(64, 64, 16, num_warps=8, num_stages=2, tiles=32),
    "sm_120": LinearConfig(64, 64, 16, num_warps=8, num_stages=2, tiles=32),
    "interpreter": LinearConfig(64, 128, 64, num_warps=4, num_stages=1, tiles=2),
}
_SMALL_32_BIT = LinearConfig(64, 64, 32, num_warps=8, num_stages=2, tiles=32)


# Each chosen id costs the fused linear kernel a comparison with every logit: lists longer than this
# need a slab.
MOST_IDS = 8

# Fewer tokens than a tile of the fused linear kernel leave most of it idle, and a slab of so few
# would have the whole weight read for each of them: where the budget allows no larger one,
# statistics without gradient are taken without a slab. Nothing else is known to be in its favour
# until it has been timed on a GPU.
FEWEST_SLAB_TOKENS = 128


def linear_config(
    arch: str,
    dtype: torch.dtype,
    *,
    plain: bool = False,
    ids: int = 1,
    limit_bytes: int | None = None,
) -> LinearConfig:
    """For the fused linear kernel; `plain` is without bias, softcap and chosen ids, `ids` the
    number of those a token, `limit_bytes` the shared memory that a block may use (None: enough).

    An architecture that the table does not know, or whose own row does not fit, gets the smallest
    tiles.

    Raises:
        ValueError: not even these fit; the message names what they need and what there is.
    """
    if dtype.itemsize == 4:
        choices = [_LINEAR_32_BIT.get(arch, _SMALL_32_BIT), _SMALL_32_BIT]
    else:
        choices = [_LINEAR_16_BIT.get(arch, _SMALL), _SMALL]
        if plain and arch in _LINEAR_16_BIT_PLAIN:
            choices = [_LINEAR_16_BIT_PLAIN[arch], *choices]
        elif ids > 1 and arch in _LINEAR_16_BIT_SEVERAL_IDS:
            choices = [_LINEAR_16_BIT_SEVERAL_IDS[arch], _SMALL]
    for config in choices:
        if limit_bytes is None or config.shared_bytes(dtype) <= limit_bytes:
            return config
    need = min(config.shared_bytes(dtype) for config in choices)
    raise ValueError(
        f"the fused linear kernel needs {need} bytes of shared memory a block, {arch} has "
        f"{limit_bytes}: no configuration fits, keep the logits in memory (slab_free=False)"
    )


def shared_limit(device: torch.device) -> int | None:
    """Bytes of shared memory that a block may use; None where that is not limited or not known."""
    if device.type == "cpu":
        return None
    properties = torch.get_device_module(device).get_device_properties(device)
    for name in ("shared_memory_per_block_optin", "shared_memory_per_block"):
        if getattr(properties, name, 0):
            return int(getattr(properties, name))
    return None


def architecture(device: torch.device) -> str:
    """`sm_90`, `gfx942` ... of a GPU, "xpu" for what tells no more; "interpreter" for the CPU."""
    if device.type == "cpu":
        return "interpreter"
    properties = torch.get_device_module(device).get_device_properties(device)
    name = getattr(properties, "gcnArchName", "")
    if name:
        return str(name).split(":")[0]
    if hasattr(properties, "major"):
        return f"sm_{properties.major}{properties.minor}"
    return device.type  # an XPU's properties name no architecture
