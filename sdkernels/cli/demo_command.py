"""`sdkernels demo`: the main job on the embedded model and data."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder for runs and report"
    )
    parser.add_argument("--steps", type=int, default=3, help="optimiser steps per condition")
    parser.add_argument("--seed", type=int, default=0, help="of problems, rollouts and evaluation")
    parser.add_argument("--model", default="smollm2", help="hub id, local folder, or smollm2")


def run(options: argparse.Namespace, _rest: list[str]) -> None:
    """Run all conditions; the table and the place of the report come last."""
    from sdkernels.train.demo import run_demo

    run_demo(options.out, steps=options.steps, seed=options.seed, model=options.model)
