"""`sdkernels lab`: a small controlled world for self-distillation."""

from __future__ import annotations

import argparse
import time
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("--scale", default="default", help="smoke, default or full")
    parser.add_argument("--seeds", type=int, help="repetitions of each cell; default: the scale's")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/lab"), help="folder for base model and results"
    )
    parser.add_argument(
        "--resume", action="store_true", help="go on with the cells that --output has"
    )
    parser.add_argument("--workers", type=int, help="processes; default: one per core, one on GPU")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")


def run(options: argparse.Namespace, _rest: list[str]) -> None:
    """Run what is missing; tables and the place of the results come last."""
    from sdkernels.lab.results import write_results
    from sdkernels.lab.study import get_scale, run_cells

    started = time.perf_counter()
    scale = get_scale(options.scale)
    cells = run_cells(
        scale,
        options.output,
        seeds=options.seeds,
        resume=options.resume,
        workers=options.workers,
        device=options.device,
        announce=lambda line: print(line, flush=True),
    )
    print("\n" + write_results(scale, options.output, cells) + "\n")
    print(f"{(time.perf_counter() - started) / 60:.1f} minutes")
    print(f"results: {options.output / 'results.md'}")
