"""Plots and tables of a results file into the repository: no figure without the file that holds it.

    python -m bench.publish bench/results/cpu-2026-11-22.json

writes the plots to `bench/plots/`, and the tables between the markers of README.md (headline) and
bench/README.md (all runs). A file of `trl_step`, `trainer_step` or its `--recipes` has a block of
its own in bench/README.md. `tests/bench/test_publish.py` checks that they still say what the files
say.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import plots, results, step_tables, tables

ROOT = Path(__file__).resolve().parents[1]
PLOTS = ROOT / "bench" / "plots"
BEGIN, END = "<!-- bench: {file} -->", "<!-- bench: end -->"
_BLOCK = re.compile(r"<!-- bench: (?P<file>\S+) -->\n(?P<body>.*?)<!-- bench: end -->", re.S)


def headline(result: dict[str, Any], file: str) -> str:
    """README's block: the run that stands for the file."""
    run = plots.headline(result)
    return (
        f"{tables.heading(run)}\n\n{tables.table(run)}\n\n"
        f"{tables.footnote(result, run)}. File: [{file}]({file}).\n"
    )


def everything(result: dict[str, Any], file: str) -> str:
    """bench/README.md's block: all runs."""
    name = Path(file).name
    parts = [f"From [results/{name}](results/{name})."]
    for run in result["runs"]:
        parts.append(f"### {tables.heading(run)}\n\n{tables.table(run)}")
    parts += [
        f"Left out: {entry['case']}, {entry['shape']}, T = {entry['tokens']}: {entry['reason']}"
        for entry in result["left_out"]
    ]
    parts.append(tables.footnote(result, result["runs"][-1]))
    return "\n\n".join(parts) + "\n"


STEPS_PAGE = "bench/README.md"
PAGES = {"README.md": headline, "bench/README.md": everything}


def published(page: str) -> tuple[str, str]:
    """Results file that a page names, "none" where nothing is measured; and its block's text."""
    found = _block(page, (ROOT / page).read_text(encoding="utf-8"))
    return found["file"], found["body"]


def _block(page: str, text: str) -> re.Match[str]:
    found = _BLOCK.search(text)
    if found is None:
        raise ValueError(f"{page} has no block {BEGIN.format(file='FILE.json')} ... {END}")
    return found


def publish(path: Path) -> list[Path]:
    """Write plots and pages; returns what was written."""
    result = results.read(path)
    file = path.resolve().relative_to(ROOT).as_posix()
    written = plots.draw(result, PLOTS)
    for page, render in PAGES.items():
        text = (ROOT / page).read_text(encoding="utf-8")
        found = _block(page, text)
        before, after = text[: found.start()], text[found.end() :]
        block = f"{BEGIN.format(file=file)}\n{render(result, file)}{END}"
        (ROOT / page).write_text(before + block + after, encoding="utf-8")
        written.append(ROOT / page)
    return written


def published_step(kind: str) -> tuple[str, str]:
    """Like `published`, for the block of a kind of `step_tables`."""
    found = _step_block(kind, (ROOT / STEPS_PAGE).read_text(encoding="utf-8"))
    return found["file"], found["body"]


def _step_block(kind: str, text: str) -> re.Match[str]:
    found = re.search(
        rf"<!-- {kind}: (?P<file>\S+) -->\n(?P<body>.*?)<!-- {kind}: end -->", text, re.S
    )
    if found is None:
        raise ValueError(f"{STEPS_PAGE} has no block <!-- {kind}: FILE.json --> ...")
    return found


def publish_step(path: Path, report: dict[str, Any]) -> list[Path]:
    """Write the block of a file of `step_tables`; returns what was written."""
    page, kind = ROOT / STEPS_PAGE, report["kind"]
    file = path.resolve().relative_to(ROOT).as_posix()
    text = page.read_text(encoding="utf-8")
    found = _step_block(kind, text)
    block = f"<!-- {kind}: {file} -->\n{step_tables.block(report, file)}<!-- {kind}: end -->"
    page.write_text(text[: found.start()] + block + text[found.end() :], encoding="utf-8")
    return [page]


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m bench.publish")
    parser.add_argument("file", type=Path, help="results file below the repository")
    file = parser.parse_args(arguments).file
    report = json.loads(file.read_text(encoding="utf-8"))
    kind = report.get("kind") if isinstance(report, dict) else None
    for path in publish_step(file, report) if kind in step_tables.TABLES else publish(file):
        print(f"written: {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
