"""`python -m bench`: the suite of this machine, results under `bench/results/`.

python -m bench                       # CPU: under ten minutes on two idle cores
python -m bench --limit-seconds 120   # the most wanted runs only; the file lists what was left out
"""

from __future__ import annotations

import argparse
import datetime
import sys
from collections.abc import Sequence
from pathlib import Path

import torch

from . import files, suite
from .flags import positive_seconds
from .machine import hardware

HERE = Path(__file__).parent


def default_path(device: torch.device) -> Path:
    """`<hardware>-<date>.json` among the results of the checkout; of an installed package, here."""
    folder = HERE / "results" if (HERE / "README.md").exists() else Path.cwd()
    return folder / f"{hardware(device)}-{datetime.date.today().isoformat()}.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run, print the tables, write the file; returns the exit status: 1 where a run failed outside
    a peer.
    """
    parser = argparse.ArgumentParser(prog="python -m bench", description="Run the suite.")
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument(
        "--limit-seconds", type=positive_seconds, help="begin no run after this time"
    )
    parser.add_argument(
        "--out",
        type=Path,
        help=f"JSON file (default: bench/results/<hardware>-<date>.json); {files.EXISTING}",
    )
    options = parser.parse_args(arguments)
    name = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if name == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: torch sees no GPU here; use --device cpu")
    device = torch.device(name)
    entries = suite.gpu_entries() if name == "cuda" else suite.cpu_entries()
    limit = options.limit_seconds
    command = f"python -m bench --device {name}" + (
        "" if limit is None else f" --limit-seconds {limit:g}"
    )
    try:
        out = files.place(options.out, default_path(device), files.is_results)
    except ValueError as error:
        parser.error(str(error))
    try:
        made = suite.run_jobs(suite.jobs(entries, device), command, out, limit_seconds=limit)
    except KeyboardInterrupt:
        return 130
    return 1 if made.failures else 0


if __name__ == "__main__":
    sys.exit(main())
