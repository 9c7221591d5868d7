"""Files and Markdown tables of the three measurements of whole steps: `trl_step`, `trainer_step`
and `method_cost`. Their files have `kind`, `command`, `machine`, `settings` and `rows`.
"""

from __future__ import annotations

import datetime
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from .machine import hardware

MIB, GIB = 1 << 20, 1 << 30


def command_line(module: str, arguments: Sequence[str] | None) -> str:
    """What was typed but for `--out`, whose folder is of that machine alone; quoted where a shell
    needs it.
    """
    words = list(sys.argv[1:] if arguments is None else arguments)
    while "--out" in words:
        first = words.index("--out")
        del words[first : first + 2]
    return shlex.join(["python", "-m", f"bench.{module}", *words])


def default_path(kind: str, device: torch.device) -> Path:
    """`<kind>-<hardware>-<date>.json` among the results."""
    name = f"{kind}-{hardware(device)}-{datetime.date.today().isoformat()}.json"
    return Path(__file__).parent / "results" / name


def trl_table(report: dict[str, Any]) -> str:
    """Loss part of TRL's trainers before and after `use_engine`; the layer's time is taken off.

    Where a step is no slower than its layer alone, there is nothing to divide by.
    """
    lines = [
        "| trainer | before s | after s | times as fast | before MiB | after MiB | of the memory |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        if "not_run" in row:
            lines.append(f"| {row['name']} | {_not_run(row)} | | | | | |")
            continue
        layer = row["layer"]["seconds"]["median"]
        before, after = (row[side]["seconds"]["median"] - layer for side in ("before", "after"))
        sizes = [row[side]["peak_extra_bytes"] for side in ("before", "after")]
        memory = " | | |"
        if None not in sizes:
            share = f"{sizes[1] / sizes[0]:.2f}" if sizes[0] else ""
            memory = f" {sizes[0] / MIB:.0f} | {sizes[1] / MIB:.0f} | {share} |"
        times = [f"{side:.2f}" if side > 0 else "not above the layer's" for side in (before, after)]
        faster = f"{before / after:.2f}" if min(before, after) > 0 else ""
        lines.append(f"| {row['name']} | {times[0]} | {times[1]} | {faster} |{memory}")
    return "\n".join(lines)


def trainer_table(report: dict[str, Any]) -> str:
    """One optimisation step of each trainer."""
    lines = [
        "| | step s | tokens/s | without rollouts s | tokens/s | peak GiB |",
        "|---|---|---|---|---|---|",
    ]
    for row in report["rows"]:
        if "not_run" in row:
            lines.append(f"| {row['name']} | {_not_run(row)} | | | | |")
            continue
        cells = [row["name"]]
        for part in ("step", "without_rollout"):
            cells.append(f"{row[f'{part}_seconds']['median']:.2f}")
            cells.append(f"{row[f'{part}_tokens_per_second']:.0f}")
        cells.append(f"{row['peak_memory_bytes'] / GIB:.2f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def methods_table(report: dict[str, Any]) -> str:
    """What a step costs with each recipe and context, against plain SDPO."""
    lines = ["| | s a step | of SDPO's |", "|---|---|---|"]
    for row in report["rows"]:
        if "not_run" in row:
            lines.append(f"| {row['name']} | {_not_run(row)} | |")
        else:
            shown = row["not_compared"] if "not_compared" in row else f"{row['of_sdpo']:.0%}"
            lines.append(f"| {row['name']} | {row['seconds']:.2f} | {shown} |")
    return "\n".join(lines)


def _not_run(row: dict[str, Any]) -> str:
    """The reason as a cell: one line, no bar that would begin another cell."""
    reason = " ".join(str(row["not_run"]).split()).replace("|", "\\|")
    return f"not run: {reason}"


TABLES: dict[str, Callable[[dict[str, Any]], str]] = {
    "trl": trl_table,
    "trainer": trainer_table,
    "methods": methods_table,
}


def block(report: dict[str, Any], file: str) -> str:
    """The table of a file, and what its figures depend on."""
    machine = report["machine"]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    packages = ("torch", "transformers", "trl", "sdkernels")
    versions = ", ".join(
        f"{name} {machine['versions'][name] or 'not installed'}" for name in packages
    )
    settings = ", ".join(f"{name} {value}" for name, value in report["settings"].items())
    return (
        f"{TABLES[report['kind']](report)}\n\n"
        f"{machine['date']}, {where}, Python {machine['python']}, {versions}; {settings}; "
        f"`{report['command']}`. File: [results/{Path(file).name}](results/{Path(file).name}).\n"
    )
