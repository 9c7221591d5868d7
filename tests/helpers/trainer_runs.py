"""Small runs of the trainer: fixed responses, a critic without a model, and what came out."""

from __future__ import annotations

from typing import Any

import torch

from sdkernels.contexts import Example
from sdkernels.train.rollout import Sample
from sdkernels.train.trainer import SelfDistillTrainer
from sdkernels.train.verify import Verdict


class FixedRollout:
    """The same responses for a prompt whoever asks: lengths and ids follow from the prompt."""

    def __init__(self, tokenizer: Any, *, text: str | None = None) -> None:
        self.tokenizer = tokenizer
        self.text = text
        self.calls: list[int] = []

    def generate(self, prompts_ids, num_generations, sampling, *, seed):
        self.calls.append(len(prompts_ids))
        return [
            [self._sample(ids, i, sampling.max_new_tokens) for i in range(num_generations)]
            for ids in prompts_ids
        ]

    def _sample(self, prompt: list[int], index: int, limit: int) -> Sample:
        if self.text is not None:
            ids = self.tokenizer(self.text)["input_ids"]
            return Sample([*ids, self.tokenizer.eos_token_id], self.text, False)
        length = 3 + (sum(prompt) + index) % (limit - 2)
        ids = [3 + (7 * sum(prompt) + 11 * index + 5 * j) % 250 for j in range(length)]
        return Sample(ids, self.tokenizer.decode(ids), True)


class Echo:
    """A critic without a model."""

    def critique(self, pairs):
        return [f"Step 1: the answer is {example.answer}." for example, _ in pairs]

    def write(self, prompts):
        return ["<why>Add one by one.</why>"] * len(prompts)


def by_length(text: str, example: Example) -> Verdict:
    """A verdict that differs between responses of which all are wrong."""
    right = len(text) % 2 == 0
    return Verdict(right, float(right), None, "feedback")


def lines(trainer: SelfDistillTrainer) -> list[dict[str, Any]]:
    """Its lines of metrics.jsonl."""
    return trainer.metrics_log.read()


def weights(model: Any) -> dict[str, torch.Tensor]:
    """A copy of the parameters."""
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def largest_difference(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> float:
    """Over all parameters of two models."""
    assert ours.keys() == theirs.keys()
    return max(float((ours[name] - theirs[name]).abs().max()) for name in ours)
