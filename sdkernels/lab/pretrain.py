"""The base model: trained from scratch on the corpus, and left imperfect."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from sdkernels import recipes
from sdkernels.engine import LMHead, token_loss
from sdkernels.lab.corpus import batches
from sdkernels.lab.model import Size, make, padded, response_hidden


@dataclass(frozen=True)
class BasePlan:
    """How the base model is trained: steps of about `batch_tokens` tokens, prompts and padding
    included; `learning_rate` is the peak, after a warm-up of a twentieth and before a cosine.
    """

    size: Size = field(default_factory=Size)
    steps: int = 2400
    batch_tokens: int = 2560
    learning_rate: float = 2e-3
    seed: int = 0


def rate_at(step: int, plan: BasePlan) -> float:
    """Learning rate of a step, from 0."""
    warm = max(1, plan.steps // 20)
    if step < warm:
        return plan.learning_rate * (step + 1) / warm
    done = (step - warm) / max(1, plan.steps - warm)
    return plan.learning_rate * (0.05 + 0.95 * 0.5 * (1 + math.cos(math.pi * done)))


def train_base(
    plan: BasePlan, *, device: str = "cpu", progress: Callable[[int, float], None] | None = None
) -> Any:
    """A trained model in evaluation mode; `progress` is called with step and loss in nats."""
    model = make(plan.size, plan.seed, device).train()
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=plan.learning_rate, betas=(0.9, 0.95), weight_decay=0.05
    )
    rng = random.Random(plan.seed)
    nll = recipes.get("nll")
    queue: list[Any] = []
    for step in range(plan.steps):
        queue = queue or batches(rng, plan.batch_tokens)
        batch = queue.pop()
        responses = [sample.ids[sample.start :] for sample in batch]
        ids_BL, mask_BL = padded(responses, device)
        hidden_BLD = response_hidden(
            model, [sample.ids[: sample.start] for sample in batch], responses
        )
        loss, _ = token_loss(
            hidden_BLD,
            LMHead.from_model(model),
            nll.loss_fn,
            targets=ids_BL,
            tokens={"weight": recipes.aggregate(mask_BL)},
            mask=mask_BL,
        )
        for group in optimizer.param_groups:
            group["lr"] = rate_at(step, plan)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if progress is not None:
            progress(step + 1, float(loss.detach()))
    return model.eval()
