"""Sample responses of the student with transformers' own generation.

A backend is anything with `generate(prompts_ids, num_generations, sampling, seed) ->
list[list[Sample]]`; the other one here talks to a server (`server.py`).
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from torch import Tensor

from sdkernels.train.kv_cache import cache_name
from sdkernels.train.sides import padding_id


@dataclass(frozen=True)
class Sampling:
    """How tokens are drawn. `temperature=0` is greedy, `top_k=0` keeps every token.

    Raises:
        ValueError: a number out of its range.
    """

    max_new_tokens: int = 256
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float | None = None
    repetition_penalty: float = 1.0
    extra: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, holds, accepted in (
            ("max_new_tokens", self.max_new_tokens >= 1, "at least 1"),
            ("temperature", 0 <= self.temperature < math.inf, "a number from 0 (greedy) on"),
            ("top_p", 0 < self.top_p <= 1, "a number above 0, at most 1"),
            ("top_k", self.top_k >= 0, "at least 0 (every token)"),
            ("min_p", self.min_p is None or 0 <= self.min_p <= 1, "a number from 0 to 1"),
            ("repetition_penalty", 0 < self.repetition_penalty < math.inf, "a number above 0"),
        ):
            if not holds:
                raise ValueError(f"{name}={getattr(self, name)!r}: expected {accepted}")


@dataclass(frozen=True)
class Sample:
    """One response: its exact token ids (a final end-of-turn id included), its text without special
    tokens, and the log-probs the sampler gave for the ids (nats), if it was asked for them.
    """

    token_ids: list[int]
    text: str
    truncated: bool
    logprobs: list[float] | None = None


class RolloutBackend(Protocol):
    """Samples `num_generations` responses for each prompt."""

    def generate(
        self, prompts_ids: list[list[int]], num_generations: int, sampling: Sampling, *, seed: int
    ) -> list[list[Sample]]:
        """Samples per prompt, in the order of the prompts. The same seed gives the same samples."""
        ...


def derived_seed(*parts: int | str) -> int:
    """A 63-bit seed from a run's seed and what distinguishes one use of it (step, rank,
    purpose).
    """
    digest = hashlib.sha256(":".join(str(part) for part in parts).encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 1


class TransformersRollout:
    """Generation with the live model: left padding, KV cache, eval mode, no gradient, its own
    random state.

    Args:
        model: callable that gives the model to sample from (unwrapped; it may be sharded later than
            this object is made).
        tokenizer: gives padding and end-of-turn ids.
        batch_size: sequences generated at once; None for all. Changing it changes the samples.
        should_stop: asked at every token; raising from it abandons the rollout.
    """

    def __init__(
        self,
        model: Callable[[], Any],
        tokenizer: Any,
        *,
        batch_size: int | None = None,
        should_stop: Callable[[], None] | None = None,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise ValueError(
                f"rollout_batch_size={batch_size}: expected at least 1, or None for all at once"
            )
        self.model = model
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.should_stop = should_stop

    def generate(
        self, prompts_ids: list[list[int]], num_generations: int, sampling: Sampling, *, seed: int
    ) -> list[list[Sample]]:
        """See `RolloutBackend.generate`."""
        rows = [ids for ids in prompts_ids for _ in range(num_generations)]
        size = self.batch_size or len(rows) or 1
        samples: list[Sample] = []
        model = self.model()
        device = next(model.parameters()).device
        with _sampling_mode(model, self._generation_config(model, sampling)), _seeded(seed, device):
            for start in range(0, len(rows), size):
                samples += self._generate_batch(model, rows[start : start + size], device)
        return [samples[i : i + num_generations] for i in range(0, len(samples), num_generations)]

    def _generate_batch(
        self, model: Any, rows: list[list[int]], device: torch.device
    ) -> list[Sample]:
        from transformers import StoppingCriteriaList

        prompts, repeats = _runs(rows)
        prompt_ids, prompt_mask = pad_left(prompts, padding_id(self.tokenizer), device)
        counts = torch.tensor(repeats, device=device)
        input_ids = prompt_ids.repeat_interleave(counts, dim=0)
        config = model.generation_config
        settings: dict[str, Any] = {}
        if len(prompts) < len(rows):
            settings[cache_name()] = _shared_prefix(model, prompt_ids, prompt_mask, counts)
        if self.should_stop is not None:
            settings["stopping_criteria"] = StoppingCriteriaList([self._interruptible])
        output = model.generate(
            input_ids=input_ids,
            attention_mask=prompt_mask.repeat_interleave(counts, dim=0),
            generation_config=config,
            **settings,
        )
        completions = output[:, input_ids.shape[1] :].tolist()
        return [self._to_sample(ids, set(config.eos_token_id)) for ids in completions]

    def _interruptible(self, input_ids: Tensor, scores: Any, **_: Any) -> Tensor:
        assert self.should_stop is not None
        self.should_stop()
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)

    def _to_sample(self, ids: list[int], stop_ids: set[int]) -> Sample:
        # What follows the first end-of-turn id is padding, whichever id that is.
        end = next((i + 1 for i, token in enumerate(ids) if token in stop_ids), None)
        kept = ids if end is None else ids[:end]
        text = self.tokenizer.decode(kept, skip_special_tokens=True)
        return Sample(token_ids=kept, text=text, truncated=end is None)

    def _generation_config(self, model: Any, sampling: Sampling) -> Any:
        from transformers import GenerationConfig

        stop_ids = stop_token_ids(model, self.tokenizer)
        settings: dict[str, Any] = {
            "max_new_tokens": sampling.max_new_tokens,
            "eos_token_id": stop_ids,
            "pad_token_id": padding_id(self.tokenizer),
            "bos_token_id": self.tokenizer.bos_token_id,
            "use_cache": True,
            "repetition_penalty": sampling.repetition_penalty,
        }
        if sampling.temperature == 0:
            settings["do_sample"] = False
        else:
            settings |= {
                "do_sample": True,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "top_k": sampling.top_k,
            }
            if sampling.min_p is not None:
                settings["min_p"] = sampling.min_p
        return GenerationConfig(**(settings | sampling.extra))


def stop_token_ids(model: Any, tokenizer: Any) -> list[int]:
    """Ids that end a turn: the tokenizer's and those of the model's generation config."""
    named = getattr(model.generation_config, "eos_token_id", None)
    ids = {named} if isinstance(named, int) else set(named or ())
    if tokenizer.eos_token_id is not None:
        ids.add(tokenizer.eos_token_id)
    if not ids:
        raise ValueError(
            "no end-of-turn id: neither the tokenizer nor the model's generation config names one"
        )
    return sorted(ids)


def pad_left(rows: list[list[int]], pad_id: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Ids and attention mask `[B, L]`, int64, padded on the left so that generation continues every
    row at its end.
    """
    width = max(len(row) for row in rows)
    ids = [[pad_id] * (width - len(row)) + row for row in rows]
    mask = [[0] * (width - len(row)) + [1] * len(row) for row in rows]
    return torch.tensor(ids, device=device), torch.tensor(mask, device=device)


def _runs(rows: list[list[int]]) -> tuple[list[list[int]], list[int]]:
    """Rows without repetitions of their neighbour, and how often each stands there."""
    groups = [(row, len(list(same))) for row, same in itertools.groupby(rows)]
    return [row for row, _ in groups], [count for _, count in groups]


def _shared_prefix(
    model: Any, prompt_ids: Tensor, prompt_mask: Tensor, counts: Tensor
) -> Any | None:
    """KV cache of the prompts but their last token, computed once a prompt and then repeated.

    None for models whose cache is not plain keys and values, and for prompts of one token.
    """
    from transformers import DynamicCache

    if prompt_ids.shape[1] < 2:
        return None
    mask = prompt_mask[:, :-1]
    output = model(
        input_ids=prompt_ids[:, :-1],
        attention_mask=mask,
        position_ids=(mask.cumsum(dim=1) - 1).clamp(min=0),
        use_cache=True,
        logits_to_keep=1,
    )
    cache = getattr(output, cache_name(), None)
    if not isinstance(cache, DynamicCache):
        return None
    cache.batch_repeat_interleave(counts)
    return cache


@contextlib.contextmanager
def _sampling_mode(model: Any, generation_config: Any) -> Iterator[None]:
    """Eval mode, no gradient, and only our own sampling settings: hub checkpoints bring top-k and
    penalties of their own.
    """
    was_training, previous = model.training, model.generation_config
    model.eval()
    model.generation_config = generation_config
    try:
        with torch.no_grad():
            yield
    finally:
        model.generation_config = previous
        model.train(was_training)


@contextlib.contextmanager
def _seeded(seed: int, device: torch.device) -> Iterator[None]:
    """A random state of its own, so that sampling neither depends on nor disturbs that of
    training.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(seed)
        yield
