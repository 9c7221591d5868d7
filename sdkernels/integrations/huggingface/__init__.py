"""Hugging Face: `patch` a causal language model, `FusedSFTTrainer`, and the Kernel Hub package."""

from sdkernels.integrations.huggingface.causal_lm import patch
from sdkernels.integrations.huggingface.sft import FusedSFTTrainer

__all__ = ["FusedSFTTrainer", "patch"]
