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


# A tile stays in registers: 4096 columns over 8 warps are 16 a thread and model, two loads of 16
# bytes in bf16. A smaller vocabulary gets the smallest tile that holds it.
STATISTICS_CONFIGS = (RowConfig(256, 1), RowConfig(1024, 2), RowConfig(4096, 8))
# The passes after the first hold more values a column.
ELEMENTWISE_CONFIGS = (RowConfig(256, 1), RowConfig(1024, 4), RowConfig(2048, 8))


def statistics_config(vocab: int) -> RowConfig:
    """For the statistics kernel."""
    return _smallest(vocab, STATISTICS_CONFIGS)


def elementwise_config(vocab: int) -> RowConfig:
    """For the gradient and mixture kernels."""
    return _smallest(vocab, ELEMENTWISE_CONFIGS)


def _smallest(vocab: int, configs: tuple[RowConfig, ...]) -> RowConfig:
    return next((config for config in configs if config.tile >= vocab), configs[-1])


def architecture(device: torch.device) -> str:
    """`sm_90`, `gfx942` ... of a GPU; "interpreter" for the CPU."""
    if device.type == "cpu":
        return "interpreter"
    properties = torch.get_device_module(device).get_device_properties(device)
    name = getattr(properties, "gcnArchName", "")
    if name:
        return str(name).split(":")[0]
    return f"sm_{properties.major}{properties.minor}"
