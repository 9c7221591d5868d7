"""What a step costs with each recipe and each context, against plain SDPO.

Rollouts are given, so that only what differs is timed; each method is measured between two
measurements of SDPO, and set against their mean, so that a machine that slows down does not count.
Half of each group is right and half is wrong, at least two of each, so that every rollout has right
and wrong siblings; a method that trains fewer tokens all the same has no ratio but the reason.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from dataclasses import replace
from typing import Any

from .trainer_step import Clock, common, parts, problems

# What a context needs to have something to say for every rollout, where its default has not.
FULL_SETTINGS = {"verifier_feedback": {"on": "all"}}


class GivenRollout:
    """Random responses of one length, the same in every run."""

    def __init__(self, length: int, vocab: int) -> None:
        self.length, self.vocab = length, vocab

    def generate(
        self, prompts_ids: list[list[int]], num_generations: int, sampling: Any, *, seed: int
    ) -> list[list[Any]]:
        """See `sdkernels.train.rollout.RolloutBackend`."""
        from sdkernels.train.rollout import Sample

        def sample(prompt: int, index: int) -> Sample:
            step = 7 + 2 * prompt + index
            ids = [100 + (step * j) % (self.vocab - 200) for j in range(self.length)]
            return Sample(ids, "Step 1: add.\n\nStep 2: check. The answer is 7.", True)

        return [[sample(p, i) for i in range(num_generations)] for p in range(len(prompts_ids))]


def cost_of(
    options: argparse.Namespace, model: Any, tokenizer: Any, **method: Any
) -> dict[str, Any]:
    """Median `seconds` of a step; of the last one `num_tokens` trained, and `signal_share`."""
    from sdkernels.train import SelfDistillConfig, SelfDistillTrainer
    from sdkernels.train.hooks import CompactPrinter
    from sdkernels.train.verify import Verdict

    settings = common(options, tempfile.mkdtemp()) | {"learning_rate": 0.0}
    config = SelfDistillConfig(
        **settings,
        per_device_train_batch_size=options.prompts,
        num_generations=options.generations,
        max_completion_length=options.completion,
        dump_tokens=0,
        **method,
    )
    clock = Clock()
    trainer = SelfDistillTrainer(
        copy.deepcopy(model),
        config,
        data(options),
        tokenizer,
        rollout=GivenRollout(options.completion, len(tokenizer)),
        callbacks=[clock.callback()],
    )
    # Every second rollout is right, also within each group, whose size is even.
    verdicts = iter(range(10**9))

    def verify(*_: Any) -> Verdict:
        right = next(verdicts) % 2 == 0
        return Verdict(right, float(right), "7" if right else "8", "The answer is off by one.")

    trainer.builder.verifier = verify
    trainer.remove_callback(CompactPrinter)
    trainer.train()
    seconds = statistics.median(b - a for a, b in zip(clock.ends[:-1], clock.ends[1:], strict=True))
    line = trainer.metrics_log.read()[-1]
    return {"seconds": seconds} | {key: line[key] for key in ("num_tokens", "signal_share")}


def data(options: argparse.Namespace) -> list[Any]:
    """The problems, two at least: one context shows another problem."""
    several = argparse.Namespace(**vars(options) | {"prompts": max(2, options.prompts)})
    return [replace(example, stronger_solution=example.solution) for example in problems(several)]


def methods_of(options: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """Name and settings of what the flags ask for; a recipe has the context that it brings.

    Raises:
        ValueError: an unknown name, or groups without two right and two wrong rollouts.
    """
    from sdkernels import contexts, recipes

    if options.generations < 4 or options.generations % 2:
        raise ValueError(
            f"--generations={options.generations}: expected an even number from 4 on, so that "
            "every rollout has a right and a wrong sibling"
        )
    methods: list[tuple[str, dict[str, Any]]] = []
    if options.recipes is not None:
        for name in options.recipes or recipes.names():
            recipe = recipes.get(name)
            own = recipe.context is not None or "teacher" not in recipe.needs
            context = {} if own else {"context": "reference_solution"}
            methods.append((f"recipe {name}", {"recipe": name, **context}))
    if options.contexts is not None:
        for name in options.contexts or contexts.names():
            contexts.get(name)
            args = FULL_SETTINGS.get(name)
            words = "".join(f", {key}={value}" for key, value in (args or {}).items())
            method = {"recipe": "sdpo", "context": name} | ({"context_args": args} if args else {})
            methods.append((f"context {name}{words}", method))
    return methods


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each recipe and context that the flags ask for; errors as in `methods_of`."""
    from sdkernels.train.errors import Interrupted

    methods = methods_of(options)
    model, tokenizer = parts(options)
    plain = {"recipe": "sdpo", "context": "reference_solution"}
    before = cost_of(options, model, tokenizer, **plain)
    print(f"{'':<42}{'seconds':>9}{'of SDPO':>9}")
    rows: list[dict[str, Any]] = []
    for name, method in methods:
        try:
            if _generates(method):
                raise ValueError("it generates text")
            cost = cost_of(options, model, tokenizer, **method)
        except Interrupted:
            raise  # whoever stops the measurement means all of it
        except (ValueError, RuntimeError) as error:
            rows.append({"name": name, "not_run": str(error)})
            print(f"{name:<42}  not run: {str(error)[:90]}", flush=True)
            continue
        row: dict[str, Any] = {"name": name, **cost}
        if reason := _less_work(cost, before):
            row["not_compared"] = reason
            print(f"{name:<42}{cost['seconds']:>9.3f}  {row['not_compared']}", flush=True)
        else:
            after = cost_of(options, model, tokenizer, **plain)
            ratio = cost["seconds"] / ((before["seconds"] + after["seconds"]) / 2)
            before = after
            row |= {"of_sdpo": ratio, "sdpo_seconds": after["seconds"]}
            print(f"{name:<42}{cost['seconds']:>9.3f}{ratio:>9.1%}", flush=True)
        rows.append(row)
    return rows


def _generates(method: dict[str, Any]) -> bool:
    from sdkernels import contexts, recipes

    own = recipes.get(method["recipe"]).context
    name = method.get("context") or (own[0] if own else "none")
    return bool(contexts.get(name).generates)


def _less_work(cost: dict[str, Any], plain: dict[str, Any]) -> str:
    """Why a step is not compared; nothing where it is.

    Recipes that keep the verifier's advantage train a row without a context all the same, but
    without its teacher pass. Those that have no teacher have no share either.
    """
    share = cost["signal_share"]
    if cost["num_tokens"] == plain["num_tokens"] and share in (None, plain["signal_share"]):
        return ""
    said = (
        "" if share is None else f"; the context has something to say for {share:.0%} of rollouts"
    )
    return f"trains {cost['num_tokens']} of SDPO's {plain['num_tokens']} tokens{said}"
