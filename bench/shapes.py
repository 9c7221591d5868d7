"""Output layers by name: hidden size D and vocabulary V as the models' public configs give them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from .names import pick


@dataclass(frozen=True)
class Shape:
    """One output layer.

    Attributes:
        hidden: D, `hidden_size` of the config.
        vocab: V, `vocab_size` of the config: rows of the weight, padding included.
        source: whose config that is.
    """

    name: str
    hidden: int
    vocab: int
    source: str


SHAPES = {
    shape.name: shape
    for shape in (
        Shape("tiny", 64, 1_000, "made up: tests of the suite itself"),
        Shape("small", 256, 8_192, "made up: CPU cases that take milliseconds"),
        Shape("smollm2", 576, 49_152, "HuggingFaceTB/SmolLM2-135M"),
        Shape("qwen3-0.6b", 1_024, 151_936, "Qwen/Qwen3-0.6B"),
        Shape("qwen3-1.7b", 2_048, 151_936, "Qwen/Qwen3-1.7B"),
        Shape("qwen3-8b", 4_096, 151_936, "Qwen/Qwen3-8B"),
        Shape("llama-3-8b", 4_096, 128_256, "meta-llama/Meta-Llama-3-8B"),
        Shape("gemma-3-1b", 1_152, 262_144, "google/gemma-3-1b-pt"),
    )
}


def get(name: str) -> Shape:
    """The shape called `name`, or D x V as in "4096x151936".

    Raises:
        ValueError: neither; the message suggests the nearest names.
    """
    sizes = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)", name.strip().lower())
    if sizes:
        return Shape(sizes[0], int(sizes[1]), int(sizes[2]), "given as D x V")
    return SHAPES[pick("shape", name, SHAPES)]
