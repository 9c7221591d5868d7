"""KL(T||S), forward and backward with a trainable head, of every peer against the bare matrix
products.

    python -m bench.divergence                      # T = 2048, D = 576, V = 49152, float32
    python -m bench.divergence --tokens 256 --repeats 3 --out /tmp/small.json

All peers run in this one process on the same tensors, in turns, so that a slower minute of the
machine hits all of them. Each is compared with the float64 answer first; one that is wrong is
reported as wrong, with its error.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

from bench import peers
from bench.case import Case, Floor, reference
from bench.measure import peak_extra_bytes, seconds, spread
from sdkernels.engine.chunks import default_chunk_bytes

WRONG_GRADIENT = (
    1e-2  # relative L2 error beyond which a float32 gradient is not a rounding difference
)
WRONG_VALUE = 1e-3


def main(argv: list[str] | None = None) -> None:
    """Run, print the table, write the JSON file."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=2048, help="tokens T (default 2048)")
    parser.add_argument("--hidden", type=int, default=576, help="hidden size D (default 576)")
    parser.add_argument("--vocab", type=int, default=49152, help="vocabulary V (default 49152)")
    parser.add_argument("--repeats", type=int, default=5, help="timed runs of each (default 5)")
    parser.add_argument("--peers", nargs="+", default=list(peers.PEERS), choices=peers.PEERS)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args(argv)
    case = Case.make(args.tokens, args.hidden, args.vocab)
    rows = check_all(case, args.peers)
    time_all(case, rows, args.repeats)
    result = {
        "command": f"python -m bench.divergence --tokens {args.tokens} --hidden {args.hidden} "
        f"--vocab {args.vocab} --repeats {args.repeats}",
        "case": "KL(T||S), sum over tokens, forward and backward, trainable head, float32",
        "shape": {"tokens": args.tokens, "hidden": args.hidden, "vocab": args.vocab},
        "budget_bytes": default_chunk_bytes(torch.device("cpu")),
        "machine": machine(),
        "rows": rows,
    }
    print(table(result))
    if args.out is not None:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(result, indent=1) + "\n")
        print(f"written to {args.out}")


def check_all(case: Case, names: list[str]) -> list[dict[str, Any]]:
    """One row a peer: its errors against float64 and its peak memory, or why it did not run."""
    loss, hidden_grad, weight_grad = reference(case)
    gradient_bytes = 4 * (hidden_grad.numel() + weight_grad.numel())
    rows: list[dict[str, Any]] = []
    for name in names:
        peer = peers.load(name)
        row: dict[str, Any] = {"peer": name, "title": peer.TITLE, "not_run": peer.unavailable()}
        rows.append(row)
        if row["not_run"] is not None:
            continue
        case.clear()
        value = peer.run(case)  # also the warm-up
        grads = case.gradients()
        row["value_error"] = abs(value - loss.item()) / abs(loss.item())
        row["gradient_error"] = max(
            ((got.double() - want).norm() / want.norm()).item()
            for got, want in zip(grads, (hidden_grad, weight_grad), strict=True)
        )
        row["wrong"] = row["value_error"] > WRONG_VALUE or row["gradient_error"] > WRONG_GRADIENT
        case.clear()
        extra = peak_extra_bytes(lambda peer=peer: peer.run(case))
        row["peak_extra_bytes"] = None if extra is None else extra - gradient_bytes
    return rows


def time_all(case: Case, rows: list[dict[str, Any]], repeats: int) -> None:
    """Time the floor and every peer in turns."""
    floor = Floor(case)
    floor()
    times: dict[str, list[float]] = {"floor": []}
    running = [row for row in rows if row["not_run"] is None]
    for _ in range(repeats):
        times["floor"].append(seconds(floor))
        for row in running:
            case.clear()
            peer = peers.load(row["peer"])
            times.setdefault(row["peer"], []).append(seconds(lambda p=peer: p.run(case)))
    floor_seconds = spread(times["floor"])
    rows.insert(
        0,
        {
            "peer": "floor",
            "title": "floor: the four matrix products",
            "not_run": None,
            "seconds": floor_seconds,
            "ratio_to_floor": 1.0,
            "gflops_per_second": case.flops / floor_seconds["median"] / 1e9,
        },
    )
    for row in running:
        row["seconds"] = spread(times[row["peer"]])
        row["ratio_to_floor"] = row["seconds"]["median"] / floor_seconds["median"]
        row["gflops_per_second"] = case.flops / row["seconds"]["median"] / 1e9


def table(result: dict[str, Any]) -> str:
    """The result as a Markdown table, followed by the machine."""
    lines = [
        "| | median s (min - max) | x floor | GFLOP/s | extra MiB | value error | gradient error |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in result["rows"]:
        if row["not_run"] is not None:
            lines.append(f"| {row['title']} | not run: {row['not_run']} | | | | | |")
            continue
        time = row["seconds"]
        extra = row.get("peak_extra_bytes")
        errors = ["", ""]
        if "value_error" in row:
            errors = [f"{row['value_error']:.1e}", f"{row['gradient_error']:.1e}"]
            if row["wrong"]:
                errors[1] += " WRONG"
        lines.append(
            f"| {row['title']} | {time['median']:.2f} ({time['min']:.2f} - {time['max']:.2f}) "
            f"| {row['ratio_to_floor']:.2f} | {row['gflops_per_second']:.0f} "
            f"| {'' if extra is None else f'{extra / 2**20:.0f}'} | {errors[0]} | {errors[1]} |"
        )
    machine_line = ", ".join(f"{key} {value}" for key, value in result["machine"].items())
    return "\n".join([*lines, "", f"{result['command']}", machine_line])


def machine() -> dict[str, Any]:
    """What the numbers depend on."""
    facts: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "cpu": _cpu_name(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
    }
    for package in ("torch", "sdkernels", "liger_kernel", "trl", "transformers"):
        try:
            facts[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            facts[package] = None
    return facts


def _cpu_name() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or "unknown"


if __name__ == "__main__":
    main()
