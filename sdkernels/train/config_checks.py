"""What a configuration refuses: values out of range, and settings that contradict one another.

Every message names the setting, the value that came and what is accepted.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sdkernels.rows import BACKENDS
from sdkernels.train.settings import check_choice, plain

if TYPE_CHECKING:
    from sdkernels.train.config import SelfDistillConfig

TEACHER_KINDS = ("frozen", "ema", "live", "lora_off", "snapshot", "trust_region", "external")
ROLLOUT_BACKENDS = ("transformers", "server", "dataset")
SYNC_KINDS = ("none", "folder", "nccl")
ADVANTAGE_SCALES = ("group", "none")
AGGREGATIONS = ("token_mean", "sequence_mean")
GATES = ("direction_adaptive", "entropy_sign", "schmitt")
DTYPES = ("auto", "float32", "bfloat16", "float16")
# Schedules for which transformers drops these settings without a word.
WITHOUT_WARM_UP = ("constant", "reduce_lr_on_plateau", "greedy")
WITHOUT_KWARGS = ("constant", "constant_with_warmup")
# Settings of transformers' own loss and evaluation, which are not run, and what to do instead.
NOT_RUN = {
    "label_smoothing_factor": "the recipe is the loss; leave it out, or choose another recipe",
    "bf16_full_eval": "evaluation samples answers from the weights as they are; leave it out, and "
    "set dtype",
    "fp16_full_eval": "evaluation samples answers from the weights as they are; leave it out, and "
    "set dtype",
}


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, the ends themselves where they are not `open_*`."""

    low: float
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    remark: str = ""

    def holds(self, value: float) -> bool:
        """Whether `value` is in it; NaN and infinity never are."""
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below and math.isfinite(value)

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.open_low else f"of at least {self.low:g}"
        if math.isinf(self.high):
            high = "finite"
        else:
            high = f"{'below' if self.open_high else 'at most'} {self.high:g}"
        return f"{low}, {high}{self.remark}"


POSITIVE = Range(0, open_low=True)
NOT_NEGATIVE = Range(0)
SHARE = Range(0, 1)
DECAY = Range(0, 1, open_high=True)
# Of TrainingArguments those that no one else checks before they do harm.
RANGES = {
    "learning_rate": NOT_NEGATIVE,
    "weight_decay": NOT_NEGATIVE,
    "adam_beta1": DECAY,
    "adam_beta2": DECAY,
    "adam_epsilon": NOT_NEGATIVE,
    "warmup_steps": NOT_NEGATIVE,
    "max_grad_norm": Range(0, remark=" (0: gradients are never scaled down)"),
    "num_train_epochs": POSITIVE,
    "save_steps": POSITIVE,
    "eval_steps": POSITIVE,
    "lora_dropout": DECAY,
    "temperature": POSITIVE,
    "loss_temperature": POSITIVE,
    "teacher_temperature": POSITIVE,
    "temperature_eval": Range(0, remark=" (0: greedy)"),
    "top_p": Range(0, 1, open_low=True, remark=" (1: keep everything)"),
    "min_p": SHARE,
    "repetition_penalty": Range(0, open_low=True, remark=" (1: none)"),
    "rollout_server_timeout": POSITIVE,
    "critic_timeout": POSITIVE,
    "teacher_update_rate": Range(
        0,
        1,
        open_low=True,
        remark="; it is the share of the student that enters the teacher at each step, so .05 is "
        "slow and .95 nearly `live`",
    ),
}
LEAST = {
    "seed": 0,
    "num_generations": 1,
    "num_iterations": 1,
    "max_prompt_length": 1,
    "max_completion_length": 1,
    "max_context_tokens": 1,
    "per_device_train_batch_size": 1,
    "gradient_accumulation_steps": 1,
    "rollout_batch_size": 1,
    "teacher_sync_steps": 1,
    "num_generations_eval": 1,
    "dataset_size": 1,
    "eval_dataset_size": 1,
    "dataset_repeat": 1,
    "top_k": 0,
    "dump_tokens": 0,
    "dump_tokens_steps": 1,
    "skip_first_tokens": 0,
    "lora_r": 1,
    "lora_alpha": 1,
    "valid_vocab": 1,
    "chunk_bytes": 1,
    "rollout_server_retries": 0,
    "rollout_server_concurrency": 1,
    "critic_max_new_tokens": 1,
}


def check_choices(config: SelfDistillConfig) -> None:
    """Settings that accept a few words."""
    if config.gate is not None:
        check_choice("gate", config.gate, GATES)
    for name, accepted in (
        ("teacher_model_kind", TEACHER_KINDS),
        ("rollout_backend", ROLLOUT_BACKENDS),
        ("rollout_server_sync", SYNC_KINDS),
        ("scale_rewards", ADVANTAGE_SCALES),
        ("aggregation", AGGREGATIONS),
        ("dtype", DTYPES),
        ("engine_backend", BACKENDS),
        ("slab_dtype", ("float32", "model")),
    ):
        check_choice(name, getattr(config, name), accepted)


def check_ranges(config: SelfDistillConfig) -> None:
    """Numbers; None, where a setting may be it, is no number."""
    for name, low in LEAST.items():
        value = getattr(config, name)
        if value is not None and value < low:
            raise ValueError(f"{name}={value!r}: expected a whole number of at least {low}")
    for name, accepted in RANGES.items():
        value = getattr(config, name)
        if value is not None and not accepted.holds(value):
            raise ValueError(f"{name}={value!r}: expected a number {accepted}")


def check_combinations(config: SelfDistillConfig) -> None:
    """Settings that need, or exclude, one another."""
    each = config.gradient_accumulation_steps
    if config.steps_per_generation is not None and (
        config.steps_per_generation < each or config.steps_per_generation % each
    ):
        raise ValueError(
            f"steps_per_generation={config.steps_per_generation}: expected a multiple of "
            f"gradient_accumulation_steps={each}, so that a batch of rollouts makes whole "
            f"optimiser steps; e.g. {2 * each} for two of them"
        )
    if config.teacher_model_kind == "external" and not config.teacher_model_name_or_path:
        raise ValueError(
            "teacher_model_kind='external' needs teacher_model_name_or_path, the model to load"
        )
    if config.teacher_model_kind != "external" and config.teacher_model_name_or_path:
        raise ValueError(
            f"teacher_model_name_or_path={config.teacher_model_name_or_path!r} has no effect "
            "with "
            f"teacher_model_kind={config.teacher_model_kind!r}; set teacher_model_kind='external'"
        )
    if config.teacher_model_kind == "trust_region" and config.teacher_update_rate == 1:
        raise ValueError(
            "teacher_update_rate=1 with teacher_model_kind='trust_region': expected a number below "
            "1, since with 1 nothing of the frozen model is left; that is teacher_model_kind='live'"
        )
    if config.remove_unused_columns:
        raise ValueError(
            "remove_unused_columns=True: examples are not model inputs, so it must stay off"
        )
    if config.n_gpu > 1:
        raise ValueError(
            f"{config.n_gpu} GPUs in one process would use DataParallel, which copies the model "
            "every step; start one "
            "process per GPU with `accelerate launch` or `torchrun`, or set "
            "CUDA_VISIBLE_DEVICES=0"
        )


def check_rollout_source(config: SelfDistillConfig) -> None:
    """Settings of one rollout backend without the other."""
    if config.rollout_backend == "server" and not config.rollout_server_url:
        raise ValueError(
            "rollout_backend='server' needs rollout_server_url, e.g. http://localhost:8000/v1"
        )
    if config.rollout_backend == "dataset" and config.num_generations != 1:
        raise ValueError(
            f"num_generations={config.num_generations}: with rollout_backend='dataset' an "
            "example has one response, its `solution`; set num_generations=1"
        )
    if (config.rollout_server_sync == "folder") != (config.rollout_server_folder is not None):
        raise ValueError(
            f"rollout_server_folder={config.rollout_server_folder!r} with rollout_server_sync="
            f"{config.rollout_server_sync!r}: 'folder' needs the server's model folder, and only "
            "it does"
        )
    if config.rollout_backend != "server":
        for name in ("rollout_server_logprobs", "rollout_server_sync", "rollout_server_url"):
            if name in config._given:
                raise ValueError(
                    f"{name}={config._given[name]!r} has no effect with rollout_backend="
                    f"{config.rollout_backend!r}; set rollout_backend='server'"
                )


def check_schedule(config: SelfDistillConfig) -> None:
    """Settings that the learning rate schedule does not read."""
    schedule = plain(config.lr_scheduler_type)
    if config.warmup_steps > 0 and schedule in WITHOUT_WARM_UP:
        raise ValueError(
            f"warmup_steps={config.warmup_steps} has no effect with lr_scheduler_type="
            f"{schedule!r}, which has no warm-up; set lr_scheduler_type='constant_with_warmup', or "
            "leave warmup_steps out"
        )
    if config.lr_scheduler_kwargs and schedule in WITHOUT_KWARGS:
        raise ValueError(
            f"lr_scheduler_kwargs={config.lr_scheduler_kwargs!r} has no effect with "
            f"lr_scheduler_type={schedule!r}, which has no settings; leave it out, or name the "
            "schedule that it belongs to"
        )


def check_inherited(config: SelfDistillConfig) -> None:
    """Settings of `TrainingArguments` that would change what is computed, but are not read."""
    for name, remedy in NOT_RUN.items():
        value = getattr(config, name)
        if value:
            raise ValueError(f"{name}={value!r} has no effect: {remedy}")
    optimizer = plain(config.optim)
    if config.optim_args and optimizer in ("adamw_torch", "adamw_torch_fused"):
        raise ValueError(
            f"optim_args={config.optim_args!r} has no effect with optim={optimizer!r}, whose "
            "settings are adam_beta1, adam_beta2, adam_epsilon and weight_decay; leave it out"
        )
    if config.train_sampling_strategy != "random" and config.num_iterations > 1:
        raise ValueError(
            f"train_sampling_strategy={plain(config.train_sampling_strategy)!r} has no effect with "
            f"num_iterations={config.num_iterations}, which draws random blocks of prompts and "
            "repeats them; leave it out, or set num_iterations=1"
        )
