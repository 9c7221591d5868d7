"""Results as Markdown tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

MIB = 1 << 20
# Of all cores; threads of small operations wait for each other long before that.
BUSY_SHARE = 0.05
HEADER = (
    "| | median (quartiles) | x floor | {flops} | extra MiB | value error | gradient error |\n"
    "|---|---|---|---|---|---|---|"
)


def heading(run: dict[str, Any]) -> str:
    """What was run, in one line."""
    shape = run["shape"]
    teacher = {"none": "", "own": ", own head as teacher", "external": ", other model as teacher"}
    head = "" if run["head"] == "trainable" else ", frozen head"
    return (
        f"{run['title']}{head}{teacher[run['teacher']]}, {run['dtype']}, {shape['name']}: "
        f"T = {shape['tokens']}, D = {shape['hidden']}, V = {shape['vocab']}"
    )


def table(run: dict[str, Any]) -> str:
    """One run: the floor, then the peers in the order in which they ran."""
    unit, scale = _flops_unit(run["floor"]["flops_per_second"])
    floor = run["floor"]
    products = floor["products"]
    lines = [
        HEADER.format(flops=unit),
        f"| floor: {products} bare matrix product{'s' if products > 1 else ''} "
        f"| {_time(floor['seconds'])} | 1.00 | {floor['flops_per_second'] / scale:.0f} | | | |",
    ]
    return "\n".join(lines + [_row(row, scale) for row in run["rows"]])


def _row(row: dict[str, Any], scale: float) -> str:
    if row["status"] == "not run":
        return f"| {row['title']} | not run: {row['reason']} | | | | | |"
    errors = f"{_error(row['value_error'])} | {_error(row['gradient_error'])}"
    if row["status"] == "wrong":
        return f"| {row['title']} | WRONG: {row['reason']} | | | | {errors} |"
    extra = row.get("peak_extra_bytes")
    return (
        f"| {row['title']} | {_time(row['seconds'])} | {row['ratio_to_floor']:.2f} "
        f"| {row['flops_per_second'] / scale:.0f} "
        f"| {'' if extra is None else f'{extra / MIB:.0f}'} | {errors} |"
    )


def footnote(result: dict[str, Any], runs: Sequence[dict[str, Any]]) -> str:
    """What the figures of these runs depend on, from the least to the most where they differ."""
    machine = result["machine"]
    where = machine.get("gpu") or f"{machine['cpu']}, {machine['threads']} threads"
    versions = ", ".join(
        f"{name} {version}" for name, version in machine["versions"].items() if version
    )
    rounds = _range([run["floor"]["seconds"]["repeats"] for run in runs])
    copies = _range([round(run["floor"]["copy_bytes_per_second"] / 1e9) for run in runs])
    return (
        f"{machine['date']}, {where}, Python {machine['python']}, {versions}; {rounds} rounds in "
        f"one process, in turns; device copy {copies} GB/s{_busy(runs)}; `{result['command']}`"
    )


def _range(values: Sequence[int]) -> str:
    low, high = min(values), max(values)
    return f"{low}" if low == high else f"{low} to {high}"


def _busy(runs: Sequence[dict[str, Any]]) -> str:
    """A warning where other processes took much of the processor during a run."""
    most = max((run.get("others_cpu_share") or 0.0 for run in runs), default=0.0)
    if most < BUSY_SHARE:
        return ""
    return f"; **the machine was busy: other processes took up to {most:.0%} of the processor**"


def text(result: dict[str, Any]) -> str:
    """All runs."""
    parts = []
    for run in result["runs"]:
        parts += [heading(run), "", table(run), "", footnote(result, [run]), ""]
    for entry in result["left_out"]:
        parts.append(
            f"left out: {entry['case']}, {entry['shape']}, T = {entry['tokens']}: {entry['reason']}"
        )
    return "\n".join(parts).rstrip()


def _flops_unit(rate: float) -> tuple[str, float]:
    return ("TFLOP/s", 1e12) if rate >= 1e13 else ("GFLOP/s", 1e9)


def _time(seconds: dict[str, Any]) -> str:
    scale, unit = (1.0, "s") if seconds["median"] >= 1 else (1e3, "ms")
    low, middle, high = (
        f"{seconds[name] * scale:.3g}" for name in ("quartile_low", "median", "quartile_high")
    )
    return f"{middle} {unit} ({low} - {high})"


def _error(error: float | None) -> str:
    return "" if error is None else f"{error:.1e}"
