"""Distributed modes: which of them the trainer runs in, and checkpoints that change mode.

FSDP2 writes the weights and the optimiser's state as whole tensors by parameter name; DDP and a
single process number the optimiser's state. A run that was sharded goes on without sharding.
"""

from __future__ import annotations

import logging
import os
from pathlib import Path
from typing import Any

import torch

from sdkernels.train.errors import CheckpointError

logger = logging.getLogger(__name__)

SHARDED_MODEL = "pytorch_model_fsdp.bin"
SHARDED_OPTIMIZER = "optimizer.bin"
PLAIN_OPTIMIZER = "optimizer.pt"
FSDP2_CONFIG = "configs/accelerate/fsdp2.yaml"


def check_mode(accelerator: Any) -> None:
    """Refuse what the loss cannot run in, and say where accelerate does not do what was asked.

    Raises:
        ValueError: DeepSpeed ZeRO-3 or FSDP1, with what to use instead.
    """
    kind = str(getattr(accelerator.distributed_type, "value", accelerator.distributed_type))
    if kind == "DEEPSPEED":
        stage = accelerator.state.deepspeed_plugin.zero_stage
        if stage == 3:
            raise ValueError(
                "DeepSpeed ZeRO-3 keeps the head's weight in pieces that the loss cannot gather: "
                f"use FSDP2 (accelerate launch --config_file {FSDP2_CONFIG}), which shards as much"
            )
        logger.warning("DeepSpeed ZeRO-%s has not been tested; DDP and FSDP2 have", stage)
    if kind == "FSDP" and accelerator.state.fsdp_plugin.fsdp_version != 2:
        raise ValueError(
            "FSDP1 flattens the head's weight together with others: set fsdp_version: 2, as in "
            f"{FSDP2_CONFIG}"
        )
    asked = os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"
    if asked and kind != "FSDP":
        logger.warning("FSDP was asked for, but accelerate runs %s here (FSDP needs GPUs)", kind)


def is_sharded(folder: Path) -> bool:
    """Whether a checkpoint was written under FSDP, as whole tensors."""
    return (folder / SHARDED_MODEL).is_file()


def load_model(folder: Path, model: Any) -> None:
    """Load a sharded run's weights into a model that is not sharded."""
    model.load_state_dict(torch.load(folder / SHARDED_MODEL, weights_only=True, map_location="cpu"))


def load_optimizer(folder: Path, model: Any, optimizer: torch.optim.Optimizer) -> None:
    """Load a sharded run's optimiser state into an optimiser of a model that is not sharded."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_optimizer_state_dict

    state = torch.load(folder / SHARDED_OPTIMIZER, weights_only=True, map_location="cpu")
    options = StateDictOptions(full_state_dict=True)
    set_optimizer_state_dict(model, optimizer, state, options=options)


def refuse_plain(folder: Path) -> None:
    """Refuse a checkpoint of a run without sharding under FSDP.

    Raises:
        CheckpointError: the optimiser's state is there, but not by parameter name.
    """
    if (folder / PLAIN_OPTIMIZER).is_file() and not (folder / SHARDED_OPTIMIZER).is_file():
        raise CheckpointError(
            f"{folder} was written without FSDP, and its optimiser state cannot be sharded: resume "
            "without FSDP, or start anew from its weights (model_name_or_path)"
        )
