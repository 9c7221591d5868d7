"""Liger `LigerFusedLinearGRPOLoss`, one sequence a chunk (its default), compiled (its default) and
not.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ..formulas import CLIP_HIGH, CLIP_LOW
from ..peer import Call, Peer, can_compile, first_of, importable
from ..problem import SEQUENCES, Problem, Setting

_installed = importable("liger_kernel.chunked_loss", "liger-kernel")


def _even(setting: Setting) -> str | None:
    if setting.tokens % SEQUENCES == 0:
        return None
    return f"takes sequences of equal length: tokens must be a multiple of {SEQUENCES}"


def _grpo(compiled: bool) -> Call:
    def call(problem: Problem) -> Tensor:
        from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

        tok, shape = problem.tokens, (-1, problem.sequence_tokens)
        module = LigerFusedLinearGRPOLoss(
            beta=0.0,
            compiled=compiled,
            use_ref_model=False,
            epsilon_low=CLIP_LOW,
            epsilon_high=CLIP_HIGH,
            loss_type="dapo",
        )
        loss, _ = module(
            problem.hidden_TD.view(*shape, problem.setting.shape.hidden),
            problem.weight_VD,
            tok.targets.view(shape),
            torch.ones_like(tok.adv).view(shape),
            tok.adv.view(shape)[:, 0].contiguous(),
            old_per_token_logps=tok.old_logp.view(shape),
            # The sum instead of the mean over the tokens. A product outside would make the
            # upstream gradient other than 1, for which Liger passes over the gradients once more.
            num_items_in_batch=1,
        )
        return loss

    return call


PEERS = [
    Peer(
        "liger-grpo" + ("-compiled" if compiled else ""),
        "Liger FusedLinearGRPO" + (", compiled" if compiled else ""),
        {"grpo": _grpo(compiled)},
        first_of(_even, *([can_compile] if compiled else []), _installed),
    )
    for compiled in (False, True)
]
