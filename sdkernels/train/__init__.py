"""Data, verification, evaluation and the self-distillation trainer."""
