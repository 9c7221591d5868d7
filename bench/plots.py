"""Plots of a results file: ratio to the floor by peer, time and memory against T."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .suite import KL

OWN_COLOUR = "#1f5fa8"
COLOURS = ("#c2572b", "#3d8a5f", "#8a5aa3", "#a8862a", "#b04a6e", "#6b7280", "#7a4b2a")
# Where rows share a colour, dashes and marker tell them apart.
DASHES, MARKERS = ("-", "--", "-.", (0, (1, 1))), ("o", "s", "^", "D")
INK, SOFT, GRID = "#22262b", "#5c626b", "#e8e5de"
OWN = "sdkernels"
STYLE = {
    "font.size": 9,
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": SOFT,
    "axes.labelcolor": SOFT,
    "axes.axisbelow": True,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "grid.color": GRID,
    "savefig.dpi": 150,
}
Run = dict[str, Any]


def draw(result: dict[str, Any], folder: Path) -> list[Path]:
    """Write `<hardware>-ratio.png`, `-time.png` and `-memory.png` into `folder`, as far as the file
    has runs for them; return their paths.
    """
    import matplotlib as mpl

    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    with mpl.rc_context(STYLE):
        for name in made(result):
            path, runs = folder / name, sweep(result)
            if name.endswith("-ratio.png"):
                _ratio(headline(result), path)
            elif name.endswith("-time.png"):
                _time(runs, path)
            else:
                _memory(runs, path)
            paths.append(path)
    return paths


def made(result: dict[str, Any]) -> dict[str, str]:
    """Names of the plots that the file has runs for, and what each shows."""
    stem, found = result["machine"]["hardware"], {}
    if result["runs"]:
        found[f"{stem}-ratio.png"] = "ratio to the floor, by peer"
    runs = sweep(result)
    if len(runs) > 1 and all(map(_timed, runs)):
        found[f"{stem}-time.png"] = "time against the number of tokens"
        if any(row.get("peak_extra_bytes") for run in runs for row in _timed(run)):
            found[f"{stem}-memory.png"] = "extra memory against the number of tokens"
    return found


def styles(peers: list[str]) -> dict[str, tuple[str, Any, str]]:
    """Colour, dashes and marker of each line: those of sdkernels in a colour that no other has, and
    no two alike.
    """
    own = [peer for peer in peers if peer.startswith(OWN)]
    found: dict[str, tuple[str, Any, str]] = {}
    for colours, names in (
        ((OWN_COLOUR,), own),
        (COLOURS, [peer for peer in peers if peer not in own]),
    ):
        for number, name in enumerate(names):
            again, place = divmod(number, len(colours))
            dashes, marker = DASHES[again % len(DASHES)], MARKERS[again % len(MARKERS)]
            found[name] = (colours[place], dashes, marker)
    return found


def headline(result: dict[str, Any]) -> Run:
    """The run that stands for the file: of KL(T||S) where it was run, of those with the most peers,
    the largest.
    """
    runs = [run for run in result["runs"] if run["case"] == KL] or result["runs"]
    return max(runs, key=lambda run: (len(run["rows"]), run["flops"]))


def sweep(result: dict[str, Any]) -> list[Run]:
    """The runs that differ from the headline in T alone, by T."""

    def kind(run: Run) -> tuple[Any, ...]:
        return (run["case"], run["shape"]["name"], run["dtype"], run["head"], run["teacher"])

    wanted = kind(headline(result)) if result["runs"] else (KL,)
    by_tokens = {run["shape"]["tokens"]: run for run in result["runs"] if kind(run) == wanted}
    return [by_tokens[tokens] for tokens in sorted(by_tokens)]


def _timed(run: Run) -> list[dict[str, Any]]:
    return [row for row in run["rows"] if row["status"] == "ok"]


def _title(run: Run, *, tokens: bool) -> str:
    shape = run["shape"]
    size = f"T = {shape['tokens']}, " if tokens else ""
    size += f"D = {shape['hidden']}, V = {shape['vocab']}"
    return f"{run['title']}, {run['head']} head, {run['dtype']}, {shape['name']}: {size}"


def _caption(figure: Any, text: str) -> None:
    figure.suptitle(text, x=0.01, ha="left", fontsize=9.5, color=INK)


def _ratio(run: Run, path: Path) -> None:
    from matplotlib.figure import Figure

    rows = sorted(_timed(run), key=lambda row: row["ratio_to_floor"], reverse=True)
    figure = Figure(figsize=(7.2, 0.9 + 0.3 * len(rows)), layout="constrained")
    axes = figure.subplots()
    for place, row in enumerate(rows):
        own = row["peer"].startswith(OWN)
        axes.barh(place, row["ratio_to_floor"], color=OWN_COLOUR if own else "#b9bfc7", height=0.7)
        ratio = row["ratio_to_floor"]
        axes.text(max(ratio, 1.0), place, f" {ratio:.2f}", va="center", color=INK)
    axes.set_yticks(range(len(rows)), [row["title"] for row in rows])
    axes.tick_params(axis="y", length=0, labelcolor=INK)
    axes.axvline(1.0, color=INK, linewidth=1)
    axes.set_xlabel("time / time of the bare matrix products of the same work")
    _caption(figure, _title(run, tokens=True))
    figure.savefig(path)


def _time(runs: list[Run], path: Path) -> None:
    def milliseconds(row: dict[str, Any]) -> float:
        return row["seconds"]["median"] * 1e3

    floor = [run["floor"]["seconds"]["median"] * 1e3 for run in runs]
    _lines(runs, milliseconds, "time, ms", path, floor=floor)


def _memory(runs: list[Run], path: Path) -> None:
    def mebibytes(row: dict[str, Any]) -> float | None:
        extra = row.get("peak_extra_bytes")
        return None if extra is None else extra / 2**20

    _lines(runs, mebibytes, "peak memory beyond inputs and gradients, MiB", path)


def _lines(
    runs: list[Run],
    value: Callable[[dict[str, Any]], float | None],
    label: str,
    path: Path,
    floor: list[float] | None = None,
) -> None:
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter, NullLocator

    figure = Figure(figsize=(7.2, 4.0), layout="constrained")
    axes = figure.subplots()
    titles = {row["peer"]: row["title"] for run in runs for row in _timed(run)}
    looks = styles(list(titles))
    for peer, title in titles.items():
        colour, dashes, marker = looks[peer]
        points = [
            (run["shape"]["tokens"], found)
            for run in runs
            for row in _timed(run)
            if row["peer"] == peer and (found := value(row)) is not None
        ]
        own = peer == OWN
        axes.plot(
            *zip(*points, strict=True),
            color=colour,
            linestyle=dashes,
            marker=marker,
            markersize=4 if own else 3,
            linewidth=2.4 if own else 1.1,
            zorder=3 if own else 2,
            label=title,
        )
    tokens = [run["shape"]["tokens"] for run in runs]
    if floor is not None:
        axes.plot(tokens, floor, color=INK, linestyle=":", linewidth=1.4, label="floor")
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.set_xticks(tokens, [f"{count}" for count in tokens])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("tokens T")
    axes.set_ylabel(label)
    axes.grid(visible=True)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda number, _: f"{number:g}"))
    # Where the values span less than a decade, the powers of ten alone would be one label.
    axes.yaxis.set_minor_formatter(
        FuncFormatter(lambda number, _: f"{number:g}" if f"{number:e}"[0] in "25" else "")
    )
    _caption(figure, _title(runs[0], tokens=False))
    figure.legend(loc="outside right center", frameon=False, fontsize=8)
    figure.savefig(path)
