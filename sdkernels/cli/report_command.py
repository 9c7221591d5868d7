"""`sdkernels report`: HTML, plots and a summary from run folders."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument(
        "folder", type=Path, help="a run folder, or a folder that holds several of them"
    )


def run(options: argparse.Namespace, _rest: list[str]) -> None:
    """Build the report and say where it is."""
    from sdkernels import report

    print(f"report: {report.build(options.folder)}")
