"""Sampling from the lab's model: batched, with a key-value cache, finished rows dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sdkernels.lab.vocabulary import END, PAD
from sdkernels.train.kv_cache import cache_name

BATCH_ROWS = 256
# Rows are dropped from the cache once this share of them has ended; dropping copies the cache.
DROP_SHARE = 0.25


@dataclass(frozen=True)
class Sampled:
    """A response: its ids, `<end>` included unless it was cut off, and the model's entropy (nats,
    temperature 1) before each of them.
    """

    ids: list[int]
    entropy: list[float]

    @property
    def truncated(self) -> bool:
        """Whether it was cut off at the maximal length."""
        return self.ids[-1] != END


@torch.no_grad()
def sample(
    model: Any,
    prompts: Sequence[Sequence[int]],
    *,
    generator: torch.Generator,
    max_new_tokens: int,
    temperature: float = 1.0,
    banned: Sequence[int] = (),
) -> list[Sampled]:
    """One response to each prompt; `banned` ids are never chosen.

    Raises:
        ValueError: a temperature of 0 or below, or no room for a token.
    """
    if not temperature > 0:
        raise ValueError(f"temperature={temperature}: expected a number > 0")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens={max_new_tokens}: expected at least 1")
    found: list[Sampled] = []
    for first in range(0, len(prompts), BATCH_ROWS):
        rows = prompts[first : first + BATCH_ROWS]
        found += _batch(model, rows, generator, max_new_tokens, temperature, banned)
    return found


def _batch(
    model: Any,
    prompts: Sequence[Sequence[int]],
    generator: torch.Generator,
    max_new_tokens: int,
    temperature: float,
    banned: Sequence[int],
) -> list[Sampled]:
    from transformers import DynamicCache

    device = model.device
    width = max(len(prompt) for prompt in prompts)
    ids = torch.tensor([[PAD] * (width - len(p)) + list(p) for p in prompts], device=device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device)
    position = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    settings = {"use_cache": True, cache_name(): cache}
    rows = list(range(len(prompts)))
    out: list[list[int]] = [[] for _ in prompts]
    entropy: list[list[float]] = [[] for _ in prompts]
    done = torch.zeros(len(rows), dtype=torch.bool, device=device)
    for _ in range(max_new_tokens):
        hidden = model.model(
            ids, attention_mask=mask, position_ids=position, **settings
        ).last_hidden_state
        chosen, nats = _choose(model.lm_head(hidden[:, -1]), generator, temperature, banned)
        for row, token, value, over in zip(
            rows, chosen.tolist(), nats.tolist(), done.tolist(), strict=True
        ):
            if not over:
                out[row].append(token)
                entropy[row].append(value)
        done |= chosen == END
        if bool(done.all()):
            break
        ids, position = chosen.unsqueeze(1), position[:, -1:] + 1
        mask = torch.cat([mask, torch.ones_like(ids)], dim=1)
        if float(done.float().mean()) > DROP_SHARE:
            keep = (~done).nonzero().squeeze(1)
            cache.batch_select_indices(keep)
            ids, position, mask, done = ids[keep], position[keep], mask[keep], done[keep]
            rows = [rows[at] for at in keep.tolist()]
    return [Sampled(tokens, nats) for tokens, nats in zip(out, entropy, strict=True)]


def _choose(
    logits_BV: Tensor, generator: torch.Generator, temperature: float, banned: Sequence[int]
) -> tuple[Tensor, Tensor]:
    """Ids `[B]` drawn at this temperature, and the entropies `[B]` at temperature 1."""
    logp_BV = logits_BV.float().log_softmax(-1)
    entropy_B = -(logp_BV.exp() * logp_BV).sum(-1)
    scores_BV = logp_BV / temperature
    # A pad token in a response would count as its end.
    scores_BV[:, [PAD, *banned]] = -torch.inf
    # Drawn on the CPU, so that a seed means the same rollouts wherever the model runs.
    probs_BV = scores_BV.softmax(-1).cpu()
    chosen_B = torch.multinomial(probs_BV, 1, generator=generator).squeeze(1)
    return chosen_B.to(logits_BV.device), entropy_B
