"""From prompts to rows: rollouts, verdicts, advantages, teacher prompts and weights of one
optimisation step.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from sdkernels import recipes
from sdkernels.contexts import (
    Context,
    Example,
    Message,
    Rollout,
    Services,
    build_prompts,
    error_start,
    validate,
)
from sdkernels.contexts.batch import rows_without
from sdkernels.recipes import Recipe
from sdkernels.train.batch import Row, mask_rows, set_weights
from sdkernels.train.config import SelfDistillConfig
from sdkernels.train.dataset_rollout import DatasetRollout
from sdkernels.train.prompts import PromptEncoder, check_boundary, check_prompt_length, where
from sdkernels.train.rollout import RolloutBackend, Sample, Sampling, derived_seed
from sdkernels.train.rollout_metrics import add_rollout_metrics
from sdkernels.train.step_metrics import StepMetrics, Timers
from sdkernels.train.verify import Verdict, kind_of, read_answer, verify

logger = logging.getLogger(__name__)

Verifier = Callable[[str, Example], Verdict]
ROOM_FOR_TEMPLATE_TOKENS = 128


class StepBuilder:
    """Makes the rows of one optimisation step on one rank.

    Args:
        config: the run's settings.
        tokenizer: the student's.
        recipe, context: what is trained and what the teacher sees.
        backend: samples responses.
        services: critic and limits for the context.
        window: longest sequence of student and teacher in tokens, None for no limit.
        verifier: judges a response; examples without an answer are not judged.
    """

    def __init__(
        self,
        config: SelfDistillConfig,
        tokenizer: Any,
        recipe: Recipe,
        context: Context,
        backend: RolloutBackend,
        services: Services,
        *,
        window: int | None,
        verifier: Verifier = verify,
    ) -> None:
        self.config = config
        self.recipe = recipe
        self.context = context
        self.backend = backend
        self.services = services
        self.window = window
        self.verifier = verifier
        self.student = PromptEncoder(tokenizer, config.mapping("chat_template_kwargs"))
        own = "teacher_chat_template_kwargs"
        name = "chat_template_kwargs" if config.teacher_chat_template_kwargs is None else own
        self.teacher = PromptEncoder(tokenizer, config.mapping(name), setting=name)

    @property
    def needs_teacher(self) -> bool:
        """Whether the loss compares with a teacher."""
        return "teacher" in self.recipe.needs

    @property
    def needs_rewards(self) -> bool:
        """Whether the loss uses verdicts."""
        return bool(
            {"rewards", "group"} & self.recipe.needs or {"adv", "success"} & self.recipe.inputs
        )

    def check(self, examples: Sequence[Example]) -> None:
        """Everything that can be known to fail is refused here, before the first step.

        Raises:
            ValueError: a prompt that is too long, answers that are missing or cannot be verified, a
                context that lacks its field or does not fit, templates that end differently. Each
                names its rows.
        """
        if not examples:
            raise ValueError("the dataset is empty: there is no example to train on")
        if isinstance(self.backend, DatasetRollout):
            self.backend.check(examples)
        if self.needs_rewards:
            lack = rows_without(examples, "answer", "recipe", self.recipe.name)
            if lack is not None:
                raise ValueError(lack)
        for example in examples:
            if example.answer is not None:
                kind_of(example)
            num_tokens = len(self.student.ids(example.prompt))
            check_prompt_length(example, num_tokens, self.config.max_prompt_length)
            self._check_window(example, num_tokens, "prompt")
        if self.needs_teacher:
            services = self.services
            if self.config.truncate_context:  # too long is then no problem; all others remain
                services = replace(services, max_context_tokens=None)
            validate(examples, self.context, services=services)
            check_boundary(self.student, self.teacher, examples[0].prompt)

    def build(
        self,
        examples: Sequence[Example],
        *,
        step: int,
        rank: int,
        timers: Timers,
    ) -> list[Row]:
        """Rows of all examples, `num_generations` in a row for each; weights are not set yet."""
        prompts_ids = [self.student.ids(example.prompt) for example in examples]
        with timers.section("rollout"):
            groups = self._responses(examples, prompts_ids, step=step, rank=rank)
            rows = [
                self._row(example, index, sample, ids)
                for example, ids, group in zip(examples, prompts_ids, groups, strict=True)
                for index, sample in enumerate(group)
            ]
        self._set_advantages(rows)
        with timers.section("context"):
            if self.needs_teacher:
                self._set_teacher_prompts(rows)
        return rows

    def count(self, rows: Sequence[Row], metrics: StepMetrics) -> None:
        """Add the rows' rewards, lengths and markers to the numbers of the step."""
        add_rollout_metrics(
            metrics,
            rows,
            group_size=self.config.num_generations,
            with_signal=self.needs_teacher,
        )

    def mask(self, rows: Sequence[Row]) -> Tensor:
        """Which response tokens count, bool `[B, L]`.

        A row without a context is left out, unless the recipe has a verifier's advantage for it.
        """
        return mask_rows(
            rows,
            need_teacher=self.needs_teacher and not self.recipe.anchored,
            skip_truncated=self.config.mask_truncated_completions,
            skip_first=self.config.skip_first_tokens,
        )

    def num_items(self, mask_BL: Tensor) -> int:
        """This rank's share of the denominator of the aggregation: tokens, or sequences with a
        token.
        """
        if self.config.aggregation == "token_mean":
            return int(mask_BL.sum())
        return int(mask_BL.any(dim=1).sum())

    def weigh(self, rows: Sequence[Row], mask_BL: Tensor, num_items: int | float) -> None:
        """Set the rows' weights for a denominator over the whole optimisation step."""
        set_weights(rows, mask_BL, recipes.aggregate(mask_BL, self.config.aggregation, num_items))

    def _responses(
        self, examples: Sequence[Example], prompts_ids: list[list[int]], *, step: int, rank: int
    ) -> list[list[Sample]]:
        if isinstance(self.backend, DatasetRollout):
            return self.backend.responses(examples, sampling_of(self.config))
        return self.backend.generate(
            prompts_ids,
            self.config.num_generations,
            sampling_of(self.config),
            seed=derived_seed(self.config.seed, "rollout", step, rank),
        )

    def _row(self, example: Example, index: int, sample: Sample, prompt_ids: list[int]) -> Row:
        row = Row(example, self._rollout(example, index, sample), prompt_ids)
        if sample.logprobs is not None:
            row.sampler_logp = torch.tensor(sample.logprobs, dtype=torch.float32)
            row.old_logp = row.sampler_logp
        return row

    def _rollout(self, example: Example, index: int, sample: Sample) -> Rollout:
        rollout = Rollout(
            example_id=example.id,
            index=index,
            text=sample.text,
            token_ids=sample.token_ids,
            truncated=sample.truncated,
        )
        if example.answer is not None:
            verdict = self.verifier(sample.text, example)
            rollout.reward, rollout.success = verdict.reward, verdict.correct
            rollout.extracted, rollout.feedback = verdict.extracted, verdict.feedback
        else:  # for contexts that vote
            rollout.extracted = read_answer(sample.text)
        return rollout

    def _set_advantages(self, rows: Sequence[Row]) -> None:
        if not self.needs_rewards:
            return
        rewards = torch.tensor([row.rollout.reward for row in rows], dtype=torch.float64)
        scale = "std" if self.config.scale_rewards == "group" else "none"
        groups = rewards.reshape(-1, self.config.num_generations)
        advantages = recipes.group_advantages(groups, scale=scale).flatten().tolist()
        for row, advantage in zip(rows, advantages, strict=True):
            row.advantage = advantage

    def _set_teacher_prompts(self, rows: Sequence[Row]) -> None:
        size = self.config.num_generations
        prompts = build_prompts(
            self.context,
            [row.example for row in rows],
            [row.rollout for row in rows],
            self.services,
            group_size=size,
        )
        for index, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
            if prompt is None or (self.recipe.skips_failed_groups and _failed(rows, index, size)):
                continue
            row.teacher_messages = prompt.messages
            row.teacher_prompt_ids = self._teacher_ids(row, prompt.messages)
            if "second_teacher_logp" in self.recipe.inputs:
                row.negative_prompt_ids = [
                    self._teacher_ids(row, messages) for messages in prompt.negatives
                ]
            if "suffix" in self.recipe.optional and prompt.error_quote is not None:
                start = error_start(row.response_ids, prompt.error_quote, self.student.tokenizer)
                row.error_start = start or 0

    def _teacher_ids(self, row: Row, messages: list[Message]) -> list[int]:
        ids = self.teacher.ids(messages)
        self._check_window(row.example, len(ids), "teacher prompt")
        return ids

    def _check_window(self, example: Example, prompt_tokens: int, what: str) -> None:
        total = prompt_tokens + self.config.max_completion_length
        if self.window is not None and total > self.window:
            raise ValueError(
                f"{where(example)}: its {what} of {prompt_tokens} tokens and max_completion_length="
                f"{self.config.max_completion_length} make {total}, the model's window is "
                f"{self.window}; lower "
                "max_completion_length or max_context_tokens, or leave the example out"
            )


def _failed(rows: Sequence[Row], index: int, size: int) -> bool:
    """Whether no rollout of the row's group was verified correct."""
    start = index // size * size
    return not any(row.rollout.success for row in rows[start : start + size])


def sampling_of(config: SelfDistillConfig) -> Sampling:
    """Sampling settings of the training rollouts."""
    return Sampling(
        max_new_tokens=config.max_completion_length,
        temperature=config.temperature,
        top_p=config.top_p,
        top_k=config.top_k,
        min_p=config.min_p,
        repetition_penalty=config.repetition_penalty,
        extra=config.mapping("generation_kwargs"),
    )


def sampling_of_evaluation(config: SelfDistillConfig) -> Sampling:
    """Sampling settings of evaluations: those of training, at `temperature_eval`."""
    temperature = config.temperature if config.temperature_eval is None else config.temperature_eval
    return replace(sampling_of(config), temperature=temperature)


def context_limit(config: SelfDistillConfig, window: int | None) -> int | None:
    """Tokens that the privileged part of a teacher prompt may have."""
    if config.max_context_tokens is not None or window is None:
        return config.max_context_tokens
    room = (
        window - config.max_prompt_length - config.max_completion_length - ROOM_FOR_TEMPLATE_TOKENS
    )
    if room < 1:
        raise ValueError(
            f"max_prompt_length={config.max_prompt_length} and "
            f"max_completion_length={config.max_completion_length} leave no "
            f"room for a context in the model's window of {window} tokens; lower one of them"
        )
    return room
