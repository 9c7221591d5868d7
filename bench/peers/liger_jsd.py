"""Liger 0.8.5, `LigerFusedLinearJSDLoss` at beta 0 (which it defines as KL(T||S)), not compiled, as
TRL calls it.
"""

import torch

from bench.case import Case
from bench.peers import missing

TITLE = "Liger chunked JSD, beta 0"
COMPILED = False


def unavailable() -> str | None:
    """Reason when Liger is not installed."""
    return missing("liger_kernel.chunked_loss")


def run(case: Case, compiled: bool = COMPILED) -> float:
    """Forward and backward; Liger divides by the number of tokens, so multiply it back."""
    from liger_kernel.chunked_loss import LigerFusedLinearJSDLoss

    tokens = case.hidden_TD.shape[0]
    module = LigerFusedLinearJSDLoss(
        weight_hard_loss=0.0, weight_soft_loss=1.0, beta=0.0, compiled=compiled
    )
    labels_T = torch.zeros(tokens, dtype=torch.long)
    loss = tokens * module(
        case.hidden_TD, case.weight_VD, case.teacher_hidden_TD, case.teacher_weight_VD, labels_T
    )
    loss.backward()
    return loss.item()
