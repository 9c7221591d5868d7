"""Settings that do nothing, or make a run that cannot learn: refused before anything is loaded."""

from __future__ import annotations

import logging

from sdkernels import contexts
from sdkernels.contexts import Context
from sdkernels.recipes import Recipe
from sdkernels.train.config import SelfDistillConfig

logger = logging.getLogger(__name__)

# They act on the ratio of the policy to the one that sampled, which is 1 in the first step on a
# batch of rollouts.
RATIO_SETTINGS = ("is_clip", "clip_low", "clip_high", "dual_clip")

# A teacher that scales an advantage of 0 leaves 0.
SCALE_THE_ADVANTAGE = ("rlsd", "rlrt", "cepo", "rlcsd")


def check_method(config: SelfDistillConfig, recipe: Recipe, context: Context) -> None:
    """Refuse combinations without effect; log what is legal but idle.

    Raises:
        ValueError: the setting, why it has no effect, and what to set instead.
    """
    given = config.changed()
    has_teacher = "teacher" in recipe.needs
    if config.max_steps == 0:
        raise ValueError(
            "max_steps=0: expected a number of optimiser steps, or -1 for num_train_epochs; "
            "`sdkernels eval` only evaluates"
        )
    if "context" in given and context.name != "none" and not has_teacher:
        raise ValueError(
            f"context={context.name!r} has no effect with recipe {recipe.name!r}, which asks no "
            "teacher; leave it out"
        )
    _check_group_size(config, recipe, context)
    for name, kinds in (
        ("teacher_update_rate", ("ema", "trust_region")),
        ("teacher_sync_steps", ("snapshot",)),
    ):
        if name in given and (config.teacher_model_kind not in kinds or not has_teacher):
            raise ValueError(
                f"{name}={given[name]!r} has no effect with teacher_model_kind="
                f"{config.teacher_model_kind!r}; it belongs to {' and '.join(map(repr, kinds))}"
            )
    _check_contrast(config, recipe, context)
    _check_failed_groups(recipe, context)
    if not (has_teacher and context.generates):
        for name in ("critic_model_name_or_path", "critic_server_url", "critic_server_model"):
            if name in given:
                raise ValueError(
                    f"{name}={given[name]!r} has no effect with context {context.name!r}, which "
                    "asks no critic; leave it out"
                )
    _log_idle_ratios(config)
    if config.is_off_policy and "old_logp" not in recipe.needs:
        logger.warning(
            "recipe %s has no importance ratio: of the %d optimiser steps on each batch of "
            "rollouts, all but the first train on samples of older weights as if they were new",
            recipe.name,
            config.steps_per_rollout_pass * config.num_iterations,
        )


def check_support_size(recipe: Recipe, vocab: int) -> None:
    """Refuse a support of more entries than the model's vocabulary has.

    Raises:
        ValueError: the setting, and the largest value that it can take.
    """
    topk = recipe.engine.get("topk")
    if topk is not None and topk > vocab:
        raise ValueError(
            f"recipe_args topk={topk}: the vocabulary of the model has {vocab} entries; set "
            f"{vocab} or less"
        )


def _check_contrast(config: SelfDistillConfig, recipe: Recipe, context: Context) -> None:
    if "second_teacher_logp" in recipe.inputs and context.name != "contrastive":
        raise ValueError(
            f"recipe {recipe.name!r} compares a right with a wrong context, and context "
            f"{context.name!r} has no wrong one; set context=contrastive (its setting `show` "
            "chooses responses or answers)"
        )
    if recipe.context is not None and recipe.context[0] == "none":
        _check_bare_question(config, recipe, context)
    elif recipe.context is not None and context.name != recipe.context[0]:
        logger.warning(
            "recipe %s was published with context %s; with %s it trains on what that gives",
            recipe.name,
            recipe.context[0],
            context.name,
        )


def _check_failed_groups(recipe: Recipe, context: Context) -> None:
    """A context that has nothing to show for failed groups leaves them out whatever the recipe
    says.
    """
    keeps = recipe.config.get("skip_failed_groups") is False
    if keeps and context.settings.get("need_success"):
        raise ValueError(
            f"recipe_args skip_failed_groups=False has no effect with context {context.name!r} and "
            "need_success=True, which shows nothing in a group without success; set context_args "
            "need_success=false, or leave skip_failed_groups out"
        )


def _check_bare_question(config: SelfDistillConfig, recipe: Recipe, context: Context) -> None:
    """A teacher that serves as reference model must read what the student reads: a KL to one that
    sees more is distillation, and no anchor.
    """
    own = config.teacher_chat_template_kwargs
    switched = own is not None and (
        config.mapping("teacher_chat_template_kwargs") != config.mapping("chat_template_kwargs")
    )
    for name, shown, differs in (
        ("context", context.name, context.name != "none"),
        ("teacher_chat_template_kwargs", own, switched),
    ):
        if differs:
            raise ValueError(
                f"{name}={shown!r}: with these recipe_args the teacher of recipe {recipe.name!r} "
                "is the reference model of a KL penalty and answers the bare question (context="
                "'none'); leave it out. To learn from a context next to a verifier's advantage use "
                "dasd, rlsd, or sdpo with grpo_weight"
            )


def _check_group_size(config: SelfDistillConfig, recipe: Recipe, context: Context) -> None:
    size = config.num_generations
    if (
        size == 1
        and "group" in recipe.needs
        and ("teacher" not in recipe.needs or recipe.name in SCALE_THE_ADVANTAGE)
    ):
        raise ValueError(
            f"num_generations=1: recipe {recipe.name!r} compares the rollouts of a prompt, and a "
            "group of one has advantage 0; set 2 or more"
        )
    if size == 1 and "adv" in recipe.inputs:
        logger.warning(
            "num_generations=1: the verifier's advantage in recipe %s compares the rollouts of a "
            "prompt, and is 0 in a group of one: the teacher alone trains; set 2 or more",
            recipe.name,
        )
    if "teacher" in recipe.needs and size < context.least_group:
        raise ValueError(
            f"num_generations={size}: context {context.name!r} shows other rollouts of the same "
            f"prompt and never finds one in a group below {context.least_group}; set "
            f"{context.least_group} or more{_or_itself(context, size)}"
        )


def _or_itself(context: Context, size: int) -> str:
    """The other remedy for a small group, where it is one."""
    if "allow_self" not in context.settings:
        return ""
    alone = contexts.get(context.name, **{**context.settings, "allow_self": True})
    return ", or context_args allow_self=true" if alone.least_group <= size else ""


def _log_idle_ratios(config: SelfDistillConfig) -> None:
    idle = [name for name in config.mapping("recipe_args") if name in RATIO_SETTINGS]
    if idle and not config.is_off_policy:
        logger.warning(
            "recipe_args %s: one optimiser step is made per batch of rollouts, so the importance "
            "ratio is 1 and this never acts; num_iterations or steps_per_generation makes several",
            ", ".join(idle),
        )
