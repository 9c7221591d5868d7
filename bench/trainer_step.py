"""One optimisation step of our trainer and of TRL's, same model, batch and lengths.

    python -m bench.trainer_step                      # ours and TRL's SDPO and GKD
    python -m bench.trainer_step --recipes --contexts # ours: every recipe and context against SDPO

Every contestant runs in a process of its own, samples its own responses, all of exactly
`--completion` tokens, and makes one step to warm up and `--steps` that count. A step lasts from the
end of one optimiser step to that of the next; the time in the trainer's own generation function is
taken off for "without rollouts". Peak memory is the highest resident memory of the process after
the warm-up (on a GPU: allocated memory).
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import files
from .flags import positive_int
from .machine import machine
from .step_tables import command_line, default_path

PROMPT = "A train leaves at nine and drives 80 km an hour. {i} people sit in it. "
SOLUTION = "First find the time that is left, then multiply it by the speed. "


class Clock:
    """Ends of optimiser steps and the time spent in a generation function."""

    def __init__(self) -> None:
        self.ends: list[float] = []
        self.rollout: list[float] = []
        self._current = 0.0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, timed."""

        def timed(*args: Any, **settings: Any) -> Any:
            begun = _now()
            try:
                return function(*args, **settings)
            finally:
                self._current += _now() - begun

        return timed

    def callback(self) -> Any:
        """The callback that notes the ends; memory counts from the first one on."""
        from transformers import TrainerCallback

        from sdkernels.train.step_metrics import reset_peak_memory

        clock = self

        class Ends(TrainerCallback):
            def on_step_end(self, *_: Any, **__: Any) -> None:
                clock.ends.append(_now())
                clock.rollout.append(clock._current)
                clock._current = 0.0
                if len(clock.ends) == 1:
                    reset_peak_memory()

        return Ends()

    def result(self, tokens: int) -> dict[str, Any]:
        """Medians over the steps after the first."""
        from sdkernels.train.step_metrics import peak_memory_bytes

        whole = [b - a for a, b in zip(self.ends[:-1], self.ends[1:], strict=True)]
        bare = [s - r for s, r in zip(whole, self.rollout[1:], strict=True)]
        row: dict[str, Any] = {"peak_memory_bytes": peak_memory_bytes()}
        for name, values in (("step", whole), ("without_rollout", bare)):
            median = statistics.median(values)
            row[f"{name}_seconds"] = {"median": median, "min": min(values), "max": max(values)}
            row[f"{name}_tokens_per_second"] = tokens / median
        return row


def _now() -> float:
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def parts(options: argparse.Namespace) -> tuple[Any, Any]:
    """Model and tokenizer, float32 on CPU and bfloat16 on a GPU."""
    import torch

    from sdkernels.train import load_model

    dtype = "bfloat16" if torch.cuda.is_available() else "float32"
    return load_model(options.model, dtype=dtype)


def problems(options: argparse.Namespace) -> list[Any]:
    """Prompts of about `--prompt` tokens."""
    from sdkernels.contexts import Example

    repeats = max(1, options.prompt // 20)
    return [
        Example(
            id=f"p{i}",
            prompt=[{"role": "user", "content": PROMPT.format(i=i) * repeats}],
            answer=str(i),
            solution=SOLUTION * repeats,
            hint="Mind the units.",
            feedback="The answer is off by one.",
            task="number",
        )
        for i in range(options.prompts)
    ]


def common(options: argparse.Namespace, folder: str) -> dict[str, Any]:
    """Settings that all trainers share."""
    import torch

    return {
        "output_dir": folder,
        "max_steps": options.steps + 1,
        "learning_rate": 1e-6,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": not torch.cuda.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,
        "logging_steps": 1,
        "temperature": 1.0,
        "seed": 1,
    }


def run_ours(options: argparse.Namespace, method: str) -> dict[str, Any]:
    """Our trainer with the recipe that TRL's trainer of this name has."""
    from sdkernels.train import SelfDistillConfig, SelfDistillTrainer
    from sdkernels.train.verify import Verdict

    model, tokenizer = parts(options)
    group = options.generations if method == "sdpo" else 1
    config = SelfDistillConfig(
        **common(options, tempfile.mkdtemp()),
        per_device_train_batch_size=options.prompts * options.generations // group,
        num_generations=group,
        max_completion_length=options.completion,
        generation_kwargs={"min_new_tokens": options.completion},
        dump_tokens=0,
        recipe=method,
        context="sibling_solution" if method == "sdpo" else "none",
    )
    clock = Clock()
    examples = problems(options) * (options.generations // group)
    trainer = SelfDistillTrainer(model, config, examples, tokenizer, callbacks=[clock.callback()])
    trainer.builder.verifier = lambda *_: Verdict(True, 1.0, None, "")
    backend: Any = trainer.builder.backend
    backend.generate = clock.around(backend.generate)
    trainer.train()
    line = trainer.metrics_log.read()[-1]
    return clock.result(line["num_tokens"]) | {"tokens": line["num_tokens"]}


def run_trl_sdpo(options: argparse.Namespace) -> dict[str, Any]:
    """TRL's SDPOTrainer: full-vocabulary JSD against the frozen initial model."""
    from datasets import Dataset
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    model, tokenizer = parts(options)
    config = SDPOConfig(
        **common(options, tempfile.mkdtemp()),
        per_device_train_batch_size=options.prompts * options.generations,
        num_generations=options.generations,
        max_completion_length=options.completion,
        generation_kwargs={"min_new_tokens": options.completion},
        distillation_mode="full_logits",
        distillation_alpha=0.5,
        teacher_model_kind="base",
    )
    rows = [{"prompt": e.prompt, "privileged_context": ""} for e in problems(options)]
    clock = Clock()
    trainer = SDPOTrainer(
        model=model,
        reward_funcs=lambda completions, **_: [1.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock.callback()],
    )
    trainer._generate = clock.around(trainer._generate)
    trainer.train()
    tokens = options.prompts * options.generations * options.completion
    return clock.result(tokens) | {"tokens": tokens}


def run_trl_gkd(options: argparse.Namespace) -> dict[str, Any]:
    """TRL's GKDTrainer, always on-policy, against a frozen copy of the model."""
    from datasets import Dataset
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    model, tokenizer = parts(options)
    settings = common(options, tempfile.mkdtemp())
    config = GKDConfig(
        **settings,
        per_device_train_batch_size=options.prompts * options.generations,
        max_new_tokens=options.completion,
        max_length=options.prompt * 4 + options.completion,
        lmbda=1.0,
        beta=0.5,
    )
    answer = {"role": "assistant", "content": "42"}
    rows = [{"messages": [*e.prompt, answer]} for e in problems(options)] * options.generations
    clock = Clock()
    trainer = GKDTrainer(
        model=model,
        teacher_model=copy.deepcopy(model),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        callbacks=[clock.callback()],
    )
    trainer.generation_config.min_new_tokens = options.completion
    trainer.generate_on_policy_outputs = clock.around(trainer.generate_on_policy_outputs)
    trainer.train()
    tokens = options.prompts * options.generations * options.completion
    return clock.result(tokens) | {"tokens": tokens}


CONTESTANTS: dict[str, Callable[[argparse.Namespace], dict[str, Any]]] = {
    "sdkernels sdpo": lambda options: run_ours(options, "sdpo"),
    "TRL SDPOTrainer": run_trl_sdpo,
    "sdkernels gkd": lambda options: run_ours(options, "gkd"),
    "TRL GKDTrainer": run_trl_gkd,
}


def in_own_process(options: argparse.Namespace, name: str) -> dict[str, Any]:
    """A contestant's row, or why there is none."""
    words = [
        f"--{key}={getattr(options, key)}"
        for key in ("model", "prompts", "generations", "prompt", "completion", "steps")
    ]
    done = subprocess.run(
        [sys.executable, "-m", f"{__package__}.trainer_step", *words, "--one", name],
        capture_output=True,
        text=True,
        env=os.environ | {"TRL_EXPERIMENTAL_SILENCE": "1"},
        check=False,
    )
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return {"name": name, "not_run": reason}
    return {"name": name, **json.loads(done.stdout.strip().splitlines()[-1])}


def compare(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of all contestants, printed as they come; an error of one is its row's reason."""
    print(f"{'':<18}{'step s':>9}{'tok/s':>9}{'no rollout s':>14}{'tok/s':>9}{'peak GiB':>10}")
    rows = []
    for name in CONTESTANTS:
        row = in_own_process(options, name)
        rows.append(row)
        if "not_run" in row:
            print(f"{name:<18}  not run: {row['not_run']}", flush=True)
            continue
        whole, bare = (row[f"{k}_seconds"]["median"] for k in ("step", "without_rollout"))
        rates = [row[f"{k}_tokens_per_second"] for k in ("step", "without_rollout")]
        print(
            f"{name:<18}{whole:>9.2f}{rates[0]:>9.1f}{bare:>14.2f}{rates[1]:>9.1f}"
            f"{row['peak_memory_bytes'] / 2**30:>10.2f}",
            flush=True,
        )
    return rows


def main(arguments: list[str] | None = None) -> int:
    """Run what the flags name; see the module. Returns the exit status: 1 where nothing ran."""
    parser = argparse.ArgumentParser(prog="python -m bench.trainer_step")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--prompts", type=positive_int, default=2, help="prompts a step")
    parser.add_argument("--generations", type=positive_int, default=4, help="responses a prompt")
    parser.add_argument("--prompt", type=positive_int, default=60, help="tokens of a prompt, about")
    parser.add_argument("--completion", type=positive_int, default=128, help="tokens of a response")
    parser.add_argument("--steps", type=positive_int, default=3, help="steps that count")
    parser.add_argument(
        "--recipes", nargs="*", metavar="NAME", help="these recipes against SDPO; no name: all"
    )
    parser.add_argument(
        "--contexts", nargs="*", metavar="NAME", help="these contexts against SDPO; no name: all"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help=f"JSON file; default: bench/results/<kind>-<hardware>-<date>.json; {files.EXISTING}",
    )
    parser.add_argument("--one", choices=list(CONTESTANTS), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(CONTESTANTS[options.one](options)))
        return 0
    import torch

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    kind = "trainer" if options.recipes is options.contexts is None else "methods"
    try:
        if kind == "methods":
            from .method_cost import measure, methods_of

            methods_of(options)  # what it refuses is said now
        check_model(options.model)
        default = default_path(kind, device)
        out = files.place(options.out, default, lambda found: files.is_step_file(found, kind))
    except ValueError as error:
        parser.error(" ".join(str(error).split()))
    rows = measure(options) if kind == "methods" else compare(options)
    if all("not_run" in row for row in rows):
        print("nothing ran: no file is written", file=sys.stderr)
        return 1
    flags = ("model", "prompts", "generations", "prompt", "completion", "steps")
    report = {
        "kind": kind,
        "command": command_line("trainer_step", arguments),
        "machine": machine(device),
        "settings": {name: getattr(options, name) for name in flags},
        "rows": rows,
    }
    files.write(out, report)
    print(f"written: {out}")
    return 0


def check_model(name: str) -> None:
    """Better now than once in every contestant.

    Raises:
        ValueError: the model is not there, or has no chat template.
    """
    from sdkernels.train.loading import load_tokenizer

    try:
        load_tokenizer(name)
    except (OSError, ImportError, RuntimeError) as error:
        raise ValueError(f"--model {name}: {error}") from error


if __name__ == "__main__":
    sys.exit(main())
