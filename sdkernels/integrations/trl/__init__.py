"""TRL's trainers on the engine: `use_engine(trainer)`.

One line after a trainer is made; the trainer keeps its rollouts, rewards, teachers, metrics,
options and checkpoints, and only the part between last hidden states and the loss is replaced:

    SDPOTrainer, SDFTTrainer    the divergence in one pass with its gradient, no logits
    GKDTrainer, GOLDTrainer     the same (GOLD with one tokenizer)
    DistillationTrainer         TRL's tiled divergence replaced, 8 instead of 12 to 16 T D V
    GRPOTrainer                 TRL's tiled log-probs replaced

What can't be honoured is refused by name when `use_engine` is called.
"""

from sdkernels.integrations.trl.engine import SUPPORTED_TRL, use_engine

__all__ = ["SUPPORTED_TRL", "use_engine"]
