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
    """Build the report; print its condition table, what could not be read, and where it is."""
    from sdkernels import report

    page = report.build(options.folder)
    study = report.load_study(options.folder)
    print(report.terminal_table([run.summary for run in study.runs]))
    if study.teacher is not None:
        print("\nteacher accuracy by context\n" + report.teacher_table(study.teacher))
    for problem in study.problems:
        print(f"not shown: {problem}")
    print(f"report: {page}")
