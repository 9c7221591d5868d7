"""`sdkernels train`: one run from a YAML file and flags."""

from __future__ import annotations

import argparse
import dataclasses
from pathlib import Path

from sdkernels.cli.text import columns

# The fields of transformers' TrainingArguments that a first run touches.
COMMON = {
    "output_dir": "Folder of the run: checkpoints, metrics.jsonl, tokens.jsonl, report.html.",
    "max_steps": "Optimiser steps; -1: as many as num_train_epochs gives.",
    "num_train_epochs": "Passes over the data set.",
    "gradient_accumulation_steps": "Micro-batches per optimiser step.",
    "weight_decay": "Weight decay of AdamW, not on biases and norms.",
    "max_grad_norm": "Gradient norm beyond which gradients are scaled down; 0: never.",
    "warmup_steps": "Steps of linear warm-up; below 1: share of all steps.",
    "save_steps": "Optimiser steps between two checkpoints; below 1: share of all steps.",
    "seed": "Of data, rollouts and everything else that is random.",
    "bf16": "Mixed precision in bfloat16.",
    "resume_from_checkpoint": "true: the newest complete checkpoint of output_dir; or a folder.",
}
USAGE = """\
usage: sdkernels train [--config FILE] [--setting VALUE ...] [--profile]

Train a model by self-distillation. Settings come from --config FILE (YAML) and flags; flags win.
--model, --out and --steps are short for --model_name_or_path, --output_dir and --max_steps.
A run that was stopped goes on with the same command and --resume_from_checkpoint true.
--profile prints where a step's time goes: rollout, forward passes, loss, backward, optimiser.

example: sdkernels train --model smollm2 --dataset reasoning-gym:chain_sum --recipe opsd
             --context reference_solution --steps 20 --num_generations 4 --out runs/first
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags are those of the configuration; see `run`."""


def run(_options: argparse.Namespace, rest: list[str]) -> None:
    """Parse the configuration, train, write the report of the run."""
    if {"-h", "--help"} & set(rest):
        print(help_text())
        return
    from sdkernels import report
    from sdkernels.train import profile
    from sdkernels.train.config_file import SHORT_NAMES, ConfigParser
    from sdkernels.train.records import METRICS_FILE, JsonLines
    from sdkernels.train.run import train

    parser = ConfigParser(prog="sdkernels train", description=USAGE)
    if "--help-all" in rest:
        parser.print_help()
        return
    settings = [word for word in rest if word != "--profile"]
    config = parser.parse([_long_name(word, SHORT_NAMES) for word in settings])
    summary = train(config)
    if config.process_index == 0:
        print(report.terminal_table([summary]))
        if len(settings) < len(rest):
            lines = JsonLines(Path(config.output_dir) / METRICS_FILE).read()
            print(profile.table(profile.breakdown(lines)))
        print(f"report: {report.build(Path(config.output_dir))}")


def help_text() -> str:
    """Settings with their defaults and units: the common ones of transformers, then ours."""
    from sdkernels.train.config import SelfDistillConfig

    known = {field.name: field for field in dataclasses.fields(SelfDistillConfig) if field.init}
    ours = [name for name in SelfDistillConfig.__annotations__ if name in known]
    texts = {
        "common settings": COMMON,
        "settings of self-distillation": {name: _help(known[name]) for name in ours},
    }
    parts = [USAGE]
    for title, names in texts.items():
        rows = [(f"--{name} {_default(known[name])}", text) for name, text in names.items()]
        parts.append(f"{title} (with defaults)\n" + columns(rows))
    parts.append(
        "Every other field of transformers.TrainingArguments is accepted too: "
        "`sdkernels train --help-all`."
    )
    return "\n\n".join(parts)


def _default(field: dataclasses.Field) -> str:
    value = None if field.default is dataclasses.MISSING else field.default
    return "-" if value is None else str(getattr(value, "value", value))


def _help(field: dataclasses.Field) -> str:
    return " ".join(str(field.metadata.get("help", "")).split())


def _long_name(word: str, short_names: dict[str, str]) -> str:
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{short_names.get(name, name)}{equals}{value}"
