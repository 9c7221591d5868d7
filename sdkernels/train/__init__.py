"""Training: data, rollouts, verification, the trainer, evaluation, and the demo.

Names are imported when first used, because most of them bring transformers with them.
"""

import importlib
from typing import Any

_HOME = {
    "ConfigParser": "config_file",
    "Parts": "run",
    "RunError": "errors",
    "Sampling": "rollout",
    "SelfDistillConfig": "config",
    "SelfDistillTrainer": "trainer",
    "TransformersRollout": "rollout",
    "ServerRollout": "server",
    "compare": "evaluation",
    "evaluate": "evaluation",
    "load_examples": "data",
    "load_model": "loading",
    "parse_config": "config_file",
    "run_demo": "demo",
    "train": "run",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(f"sdkernels.train.{_HOME[name]}"), name)
    raise AttributeError(f"module 'sdkernels.train' has no attribute {name!r}")
