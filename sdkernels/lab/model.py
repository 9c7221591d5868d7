"""The lab's model: a Llama of a million parameters over 28 words, and its hidden states."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sdkernels.lab.vocabulary import END, PAD, WORDS
from sdkernels.train.loading import no_progress_bars


@dataclass(frozen=True)
class Size:
    """Shape of the transformer; the default has 1.1 million parameters."""

    hidden: int = 144
    layers: int = 4
    heads: int = 4

    def __post_init__(self) -> None:
        if self.hidden % (2 * self.heads):
            raise ValueError(
                f"hidden={self.hidden}: expected a multiple of 2 * heads = {2 * self.heads}"
            )


def make(size: Size, seed: int, device: str = "cpu") -> Any:
    """An untrained model."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=size.hidden,
        intermediate_size=3 * size.hidden,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
        pad_token_id=PAD,
        bos_token_id=None,
        eos_token_id=END,
    )
    state = torch.get_rng_state()
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config)
    torch.set_rng_state(state)
    return model.to(device)


def save(model: Any, folder: Path) -> None:
    """Write the model into `folder`."""
    with no_progress_bars():
        model.save_pretrained(folder)


def load(folder: Path, device: str = "cpu") -> Any:
    """The model that `save` wrote, in evaluation mode."""
    from transformers import LlamaForCausalLM

    with no_progress_bars():
        return LlamaForCausalLM.from_pretrained(folder).to(device).eval()


def response_hidden(
    model: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]]
) -> Tensor:
    """Hidden states `[B, L, D]` that predict the responses' tokens; L is the longest response.

    Rows are padded on the right, which a causal model does not see; what stands behind the end of
    a response is arbitrary.
    """
    device = model.device
    width = max(len(p) + len(r) for p, r in zip(prompts, responses, strict=True))
    rows = [[*p, *r] for p, r in zip(prompts, responses, strict=True)]
    ids_BW = torch.tensor([row + [PAD] * (width - len(row)) for row in rows], device=device)
    hidden_BWD = model.model(ids_BW, use_cache=False).last_hidden_state
    longest = max(len(r) for r in responses)
    first_B = torch.tensor([len(p) - 1 for p in prompts], device=device)
    at_BL = first_B.unsqueeze(1) + torch.arange(longest, device=device)
    at_BL = at_BL.clamp(max=width - 1)
    return hidden_BWD.gather(1, at_BL.unsqueeze(-1).expand(-1, -1, hidden_BWD.shape[-1]))


def padded(responses: Sequence[Sequence[int]], device: Any) -> tuple[Tensor, Tensor]:
    """Ids `[B, L]` of the responses, padded on the right, and the mask of what is theirs."""
    longest = max(len(response) for response in responses)
    rows = [[*r, *[PAD] * (longest - len(r))] for r in responses]
    lengths_B = torch.tensor([len(r) for r in responses], device=device)
    mask_BL = torch.arange(longest, device=device) < lengths_B.unsqueeze(1)
    return torch.tensor(rows, device=device), mask_BL
