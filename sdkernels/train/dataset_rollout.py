"""Responses that stand in the data: supervised fine-tuning and off-policy distillation.

With `rollout_backend: dataset` a step trains on each example's `solution` as if the student had
said it: with the recipe `nll` that is supervised fine-tuning on traces, with a divergence it is
distillation on a fixed data set.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

from sdkernels.contexts import Example
from sdkernels.train.prompts import where
from sdkernels.train.rollout import Sample, Sampling

logger = logging.getLogger(__name__)


class DatasetRollout:
    """A rollout backend that samples nothing: one response an example, its `solution`.

    Args:
        tokenizer: turns text into ids; its end-of-turn id closes every response but those that are
            `solution_truncated`, which would teach the student to stop in mid-sentence.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._cut: set[str] = set()

    def check(self, examples: Sequence[Example]) -> None:
        """Refuse examples without a response.

        Raises:
            ValueError: the rows that lack a `solution`.
        """
        missing = [where(example) for example in examples if not example.solution]
        if missing:
            more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
            raise ValueError(
                f"rollout_backend='dataset' trains on the field `solution`, which these rows lack: "
                f"{', '.join(missing[:3])}{more}"
            )

    def responses(self, examples: Sequence[Example], sampling: Sampling) -> list[list[Sample]]:
        """One sample an example, cut at `sampling.max_new_tokens`, and logged where it is."""
        return [[self._sample(example, sampling.max_new_tokens)] for example in examples]

    def generate(
        self, prompts_ids: list[list[int]], num_generations: int, sampling: Sampling, *, seed: int
    ) -> list[list[Sample]]:
        """Not for prompts alone: a prompt does not say which example it belongs to."""
        raise TypeError("DatasetRollout answers examples, not prompts: call responses(examples)")

    def _sample(self, example: Example, limit: int) -> Sample:
        text = example.solution or ""
        ids = [*self.tokenizer(text, add_special_tokens=False)["input_ids"]]
        if not example.solution_truncated:
            ids.append(self.tokenizer.eos_token_id)
        if len(ids) > limit and example.id not in self._cut:
            self._cut.add(example.id)
            logger.warning(
                "%s: its solution of %d tokens is cut at max_completion_length=%d",
                where(example),
                len(ids),
                limit,
            )
        truncated = example.solution_truncated or len(ids) > limit
        return Sample(token_ids=ids[:limit], text=text, truncated=truncated)
