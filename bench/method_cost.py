"""What a step costs with each recipe and each context, against plain SDPO.

Rollouts are given, so that only what differs is timed; each method is measured between two
measurements of SDPO, and set against their mean, so that a machine that slows down does not count.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import tempfile
from typing import Any

from .trainer_step import Clock, common, parts, problems


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


def seconds_of(options: argparse.Namespace, model: Any, tokenizer: Any, **method: Any) -> float:
    """Median seconds of a step."""
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
        problems(options),
        tokenizer,
        rollout=GivenRollout(options.completion, len(tokenizer)),
        callbacks=[clock.callback()],
    )
    # Every second rollout is right: groups have advantages, siblings and failures.
    verdicts = iter(range(10**9))

    def verify(*_: Any) -> Verdict:
        right = next(verdicts) % 2 == 0
        return Verdict(right, float(right), "7", "The answer is off by one.")

    trainer.builder.verifier = verify
    trainer.remove_callback(CompactPrinter)
    trainer.train()
    return statistics.median(b - a for a, b in zip(clock.ends[:-1], clock.ends[1:], strict=True))


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """A row for each recipe and context that the flags ask for."""
    from sdkernels import contexts, recipes
    from sdkernels.train.errors import Interrupted

    model, tokenizer = parts(options)
    plain = {"recipe": "sdpo", "context": "reference_solution"}
    methods: list[tuple[str, dict[str, Any]]] = []
    if options.recipes:
        for name in recipes.names():
            recipe = recipes.get(name)
            method: dict[str, Any] = {"recipe": name}
            if "teacher" in recipe.needs:  # one that brings its own context is measured with that
                context, args = recipe.context or ("reference_solution", {})
                method |= {"context": context, "context_args": args}
            methods.append((f"recipe {name}", method))
    if options.contexts:
        methods += [
            (f"context {name}", {"recipe": "sdpo", "context": name}) for name in contexts.names()
        ]
    before = seconds_of(options, model, tokenizer, **plain)
    print(f"{'':<42}{'seconds':>9}{'of SDPO':>9}")
    rows: list[dict[str, Any]] = []
    for name, method in methods:
        generates = "context" in method and contexts.get(method["context"]).generates
        try:
            if generates:
                raise ValueError("it generates text")
            seconds = seconds_of(options, model, tokenizer, **method)
        except Interrupted:
            raise  # whoever stops the measurement means all of it
        except (ValueError, RuntimeError) as error:
            rows.append({"name": name, "not_run": str(error)})
            print(f"{name:<42}  not run: {str(error)[:90]}", flush=True)
            continue
        after = seconds_of(options, model, tokenizer, **plain)
        ratio = seconds / ((before + after) / 2)
        before = after
        rows.append({"name": name, "seconds": seconds, "of_sdpo": ratio, "sdpo_seconds": after})
        print(f"{name:<42}{seconds:>9.3f}{ratio:>9.1%}", flush=True)
    return rows
