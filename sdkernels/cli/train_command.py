"""`sdkernels train`: one run from a YAML file and flags."""

from __future__ import annotations

import argparse
from pathlib import Path

# Shorter spellings of settings that carry transformers' or TRL's longer names.
ALIASES = {"--model": "--model_name_or_path", "--out": "--output_dir", "--steps": "--max_steps"}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """All flags are those of the configuration; see `run`."""


def run(_options: argparse.Namespace, rest: list[str]) -> None:
    """Parse the configuration, train, write the report of the run."""
    from sdkernels import report
    from sdkernels.train.config_file import ConfigParser
    from sdkernels.train.run import train

    parser = ConfigParser(prog="sdkernels train", description=DESCRIPTION)
    if {"-h", "--help"} & set(rest):
        parser.print_help()
        return
    config = parser.parse([_long_name(word) for word in rest])
    summary = train(config)
    if config.process_index == 0:
        print(report.terminal_table([summary]))
        print(f"report: {report.build(Path(config.output_dir))}")


DESCRIPTION = (
    "Train a model by self-distillation. Settings come from --config FILE (YAML) and flags; flags "
    "win. --model, --out and --steps are short for --model_name_or_path, --output_dir and "
    "--max_steps. A run that was stopped goes on with --resume_from_checkpoint true."
)


def _long_name(word: str) -> str:
    flag, equals, value = word.partition("=")
    return ALIASES.get(flag, flag) + equals + value if word.startswith("--") else word
