"""A critic that is a model in this process."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from sdkernels.contexts.critic import CachedCritic
from sdkernels.contexts.types import Message
from sdkernels.contexts.writer import Reply

SAMPLES_PER_TENSOR = 64


class LocalCritic(CachedCritic):
    """Greedy critiques from a `transformers` causal language model.

    The model must stay as it is while the critic lives: its weights are hashed once, for the cache.

    Args:
        model: a causal language model with `generate`.
        tokenizer: its tokenizer, with a chat template.
        max_new_tokens: limit of a critique, in tokens.
        batch_size: prompts per `generate` call.
        cache_dir: folder of the cache; None keeps nothing between calls.
        model_id: name under which replies are cached; default: name and hash of the weights.
    """

    def __init__(
        self,
        model: Any,
        tokenizer: Any,
        *,
        max_new_tokens: int = 512,
        batch_size: int = 8,
        cache_dir: str | Path | None = None,
        model_id: str | None = None,
    ) -> None:
        super().__init__(cache_dir, tokenizer)
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError(
                "the critic's tokenizer has no chat template: use an instruction-tuned model, or "
                "set tokenizer.chat_template"
            )
        for name, value in (("max_new_tokens", max_new_tokens), ("batch_size", batch_size)):
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}")
        self.model = model
        self.max_new_tokens = max_new_tokens
        self.batch_size = batch_size
        name = getattr(getattr(model, "config", None), "_name_or_path", "")
        self.model_id = model_id or f"{name}#{weights_hash(model)}"

    def _identity(self) -> dict[str, Any]:
        return {
            "model": self.model_id,
            "template": self.tokenizer.chat_template,
            "max_new_tokens": self.max_new_tokens,
            "decoding": "greedy",
        }

    def _ask(self, prompts: Sequence[list[Message]]) -> Iterator[tuple[int, Reply | None]]:
        rendered = [self._render(messages) for messages in prompts]
        ids = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in rendered]
        window = getattr(self.model.config, "max_position_embeddings", None)
        room = None if window is None else window - self.max_new_tokens
        fitting = []
        for index, prompt_ids in enumerate(ids):
            if room is not None and len(prompt_ids) > room:
                yield index, None
            else:
                fitting.append(index)
        fitting.sort(key=lambda index: len(ids[index]))  # alike lengths together: less padding
        for start in range(0, len(fitting), self.batch_size):
            batch = fitting[start : start + self.batch_size]
            yield from zip(batch, self._generate([ids[index] for index in batch]), strict=True)

    def _render(self, messages: list[Message]) -> str:
        return str(
            self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        )

    @torch.no_grad()
    def _generate(self, prompts: list[list[int]]) -> list[Reply]:
        from transformers import GenerationConfig

        stop = self.model.generation_config.eos_token_id
        stop = self.tokenizer.eos_token_id if stop is None else stop
        stops = [] if stop is None else list(stop) if isinstance(stop, (list, tuple)) else [stop]
        pad = self.tokenizer.pad_token_id
        pad = pad if pad is not None else (stops[0] if stops else 0)
        width = max(map(len, prompts))
        device = self.model.device
        ids_BL = torch.tensor([[pad] * (width - len(p)) + p for p in prompts], device=device)
        mask_BL = torch.tensor(
            [[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=device
        )
        config = GenerationConfig(
            do_sample=False,
            max_new_tokens=self.max_new_tokens,
            pad_token_id=pad,
            eos_token_id=stops or None,
        )
        was_training = self.model.training
        self.model.eval()
        try:
            output_BL = self.model.generate(
                input_ids=ids_BL, attention_mask=mask_BL, generation_config=config
            )
        finally:
            self.model.train(was_training)
        return [self._reply(row, stops) for row in output_BL[:, width:].tolist()]

    def _reply(self, ids: list[int], stops: list[int]) -> Reply:
        ended = any(token in stops for token in ids)
        text = self.tokenizer.decode(ids, skip_special_tokens=True)
        return Reply(text, cut=not ended)


def weights_hash(model: Any) -> str:
    """A short hash over name, shape and a sample of the values of every tensor of the model."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        flat = tensor.detach().reshape(-1)
        step = max(1, flat.numel() // SAMPLES_PER_TENSOR)
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(flat[::step].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]
