"""Several runs that differ in one thing: same weights at the start, same prompts, same seeds."""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from sdkernels import contexts, recipes
from sdkernels.contexts import LocalCritic
from sdkernels.train.config import SelfDistillConfig
from sdkernels.train.run import Parts, load_dataset, load_student, train


@dataclass(frozen=True)
class Condition:
    """One run of a study: its name (also of its folder), its title, and the settings it changes."""

    name: str
    title: str
    settings: dict[str, Any] = field(default_factory=dict)


def run_study(
    out: str | Path,
    conditions: Sequence[Condition],
    base: dict[str, Any],
    *,
    announce: Callable[[str], None] = print,
) -> list[dict[str, Any]]:
    """Run the conditions one after the other, each in a folder of its own below `out`.

    The model is loaded once. Its initial weights are kept, as frozen teacher and critic of all
    conditions and to start each of them from. The evaluation before training is made once, because
    the weights are the same.

    Args:
        base: settings that all conditions share.
        announce: called with a line before each condition.

    Returns:
        The summaries, in order.

    Raises:
        ValueError: two conditions of one name, or settings that cannot work.
        RunError: a run had to stop; see `train`.
    """
    names = [condition.name for condition in conditions]
    if len(set(names)) != len(names):
        raise ValueError(f"conditions: a name stands twice: {names}")
    shared: Parts | None = None
    initial: Any = None
    summaries = []
    for number, condition in enumerate(conditions, start=1):
        config = _config(Path(out), base, condition)
        announce(f"[{number}/{len(conditions)}] {condition.title}")
        if shared is None:
            shared = _load(config)
            initial = copy.deepcopy(shared.model).eval().requires_grad_(False)
        else:
            shared.model.load_state_dict(initial.state_dict())
        parts = replace(
            shared,
            teacher_model=initial if config.teacher_model_kind == "frozen" else None,
            critic=_critic(config, initial, shared.tokenizer, Path(out)),
        )
        summaries.append(train(config, parts, save_final=False))
        shared.before = parts.before
        shared.model.zero_grad(set_to_none=True)
        del parts
        # The trainer and its optimiser refer to each other in cycles.
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
    return summaries


def _config(out: Path, base: dict[str, Any], condition: Condition) -> SelfDistillConfig:
    own = {
        "output_dir": str(out / condition.name),
        "condition": condition.name,
        "title": condition.title,
    }
    return SelfDistillConfig(**(base | condition.settings | own))


def _load(config: SelfDistillConfig) -> Parts:
    examples = load_dataset(config)
    problems = load_dataset(config, evaluation=True) if config.eval_dataset else None
    model, tokenizer = load_student(config)
    return Parts(model=model, tokenizer=tokenizer, examples=examples, eval_examples=problems)


def _critic(config: SelfDistillConfig, initial: Any, tokenizer: Any, out: Path) -> Any:
    """The initial weights as critic, where the condition asks one and names no other."""
    named = config.critic_model_name_or_path or config.critic_server_url
    needs_teacher = "teacher" in recipes.get(config.recipe, **config.mapping("recipe_args")).needs
    context = contexts.get(config.context, **config.mapping("context_args"))
    if named or not needs_teacher or not context.generates:
        return None
    return LocalCritic(
        initial,
        tokenizer,
        max_new_tokens=config.critic_max_new_tokens,
        cache_dir=config.critic_cache_dir or out / config.label / "critiques",
    )
