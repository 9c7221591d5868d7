"""Modules with the constructors and calls of Liger-Kernel's, on the engine.

Swap the import: `from sdkernels.integrations.liger import LigerFusedLinearJSDLoss`. Signatures are
those of Liger 0.8.5, which need not be installed. What Liger uses to steer its own chunking and
compilation (`chunk_size`, `compiled`) is accepted and has no effect: the engine chunks by bytes.
"""

from sdkernels.integrations.liger.cross_entropy import (
    CrossEntropyOutput,
    LigerFusedLinearCrossEntropyLoss,
)
from sdkernels.integrations.liger.grpo import LigerFusedLinearGRPOLoss
from sdkernels.integrations.liger.jsd import LigerFusedLinearJSDLoss

__all__ = [
    "CrossEntropyOutput",
    "LigerFusedLinearCrossEntropyLoss",
    "LigerFusedLinearGRPOLoss",
    "LigerFusedLinearJSDLoss",
]
