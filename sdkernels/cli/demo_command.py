"""`sdkernels demo`: the main job on the embedded model and data."""

from __future__ import annotations

import argparse
import json
import os
import time
from pathlib import Path

from sdkernels.cli.text import at_least


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument(
        "--out", type=Path, default=Path("runs/demo"), help="folder for runs and report"
    )
    parser.add_argument(
        "--steps", type=at_least(1), default=3, help="optimiser steps per condition"
    )
    parser.add_argument(
        "--seed", type=at_least(0), default=0, help="of problems, rollouts and evaluation"
    )
    parser.add_argument("--model", default="smollm2", help="hub id, local folder, or smollm2")


def run(options: argparse.Namespace, _rest: list[str]) -> None:
    """Run all conditions; the table and the place of the report come last."""
    from sdkernels import report
    from sdkernels.train.demo import CONDITIONS, run_demo

    started = time.perf_counter()
    summaries = run_demo(options.out, steps=options.steps, seed=options.seed, model=options.model)
    page = report.build(options.out, order=[condition.name for condition in CONDITIONS])
    print("\n" + report.terminal_table(summaries))
    print(json.loads((options.out / "summary.json").read_text(encoding="utf-8"))["note"])
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes on {os.cpu_count()} cores")
    print(f"report: {page}")
