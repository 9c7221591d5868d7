"""Plots and tables of a results file into the repository: no figure without the file that holds it.

    python -m bench.publish bench/results/cpu-2026-11-22.json

writes the plots to `bench/plots/`, and the tables between the markers of README.md (headline, with
the plots) and bench/README.md (all runs): each kind of hardware has a block of its own. A file of
`trl_step`, `trainer_step` or its `--recipes` has a block of its own in bench/README.md.
`tests/bench/test_publish.py` checks that they still say what the files say.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import plots, results, step_tables, tables

ROOT = Path(__file__).resolve().parents[1]
PLOTS = ROOT / "bench" / "plots"
BEGIN, END = "<!-- bench: {hardware} {file} -->", "<!-- bench: end -->"
_BLOCK = re.compile(
    r"<!-- bench: (?P<hardware>\S+) (?P<file>\S+) -->\n(?P<body>.*?)<!-- bench: end -->", re.S
)
# A block with the file "none" says that nothing is measured yet on this hardware.
ANY_GPU, NOTHING = "gpu", "none"


def headline(result: dict[str, Any], file: str) -> str:
    """README's block: the run that stands for the file."""
    run = plots.headline(result)
    images = "\n".join(
        f"![{text}](bench/plots/{name})" for name, text in plots.made(result).items()
    )
    return (
        f"{tables.heading(run)}\n\n{tables.table(run)}\n\n"
        f"{tables.footnote(result, [run])}. File: [{file}]({file}).\n\n{images}\n"
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
    parts.append(tables.footnote(result, result["runs"]))
    return "\n\n".join(parts) + "\n"


STEPS_PAGE = "bench/README.md"
PAGES = {"README.md": headline, "bench/README.md": everything}


def published(page: str) -> dict[str, tuple[str, str]]:
    """By hardware, the results file that a page names, "none" where nothing is measured, and its
    block's text.
    """
    blocks = _blocks(page, (ROOT / page).read_text(encoding="utf-8"))
    return {found["hardware"]: (found["file"], found["body"]) for found in blocks}


def _blocks(page: str, text: str) -> list[re.Match[str]]:
    found = list(_BLOCK.finditer(text))
    if not found:
        begin = BEGIN.format(hardware="cpu", file="FILE.json")
        raise ValueError(f"{page} has no block {begin} ... {END}")
    return found


def _place(page: str, text: str, hardware: str) -> tuple[str, str]:
    """What comes before and after the block of this hardware; one that the page has not seen takes
    the place that waits for any GPU, or comes after the last.
    """
    blocks = _blocks(page, text)
    for found in blocks:
        waits = found["hardware"] == ANY_GPU and found["file"] == NOTHING and hardware != "cpu"
        if found["hardware"] == hardware or waits:
            return text[: found.start()], text[found.end() :]
    end = blocks[-1].end()
    return f"{text[:end]}\n\n", text[end:]


def publish(path: Path) -> list[Path]:
    """Write plots and pages; returns what was written.

    Raises:
        ValueError: no results file, one without a run, or one outside the repository.
    """
    result, file = results.read(path), _name(path)
    if not result["runs"]:
        raise ValueError(f"{path} has no run: there is nothing to publish")
    hardware = result["machine"]["hardware"]
    written = plots.draw(result, PLOTS)
    for page, render in PAGES.items():
        before, after = _place(page, (ROOT / page).read_text(encoding="utf-8"), hardware)
        begin = BEGIN.format(hardware=hardware, file=file)
        block = f"{begin}\n{render(result, file)}{END}"
        (ROOT / page).write_text(before + block + after, encoding="utf-8")
        written.append(ROOT / page)
    return written


def _name(path: Path) -> str:
    """The file as pages link to it."""
    if not path.resolve().is_relative_to(ROOT):
        raise ValueError(f"{path} lies outside {ROOT}: pages can only link to a file of theirs")
    return path.resolve().relative_to(ROOT).as_posix()


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
    page, kind, file = ROOT / STEPS_PAGE, report["kind"], _name(path)
    text = page.read_text(encoding="utf-8")
    found = _step_block(kind, text)
    block = f"<!-- {kind}: {file} -->\n{step_tables.block(report, file)}<!-- {kind}: end -->"
    page.write_text(text[: found.start()] + block + text[found.end() :], encoding="utf-8")
    return [page]


def _publish_any(path: Path) -> list[Path]:
    """Whatever kind of file it is."""
    try:
        report = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON: {error}") from error
    kind = report.get("kind") if isinstance(report, dict) else None
    return publish_step(path, report) if kind in step_tables.TABLES else publish(path)


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench.publish")
    parser.add_argument("file", type=Path, help="results file below the repository")
    file = parser.parse_args(arguments).file
    try:
        written = _publish_any(file)
    except (ValueError, OSError) as error:
        print(f"bench.publish: {error}", file=sys.stderr)
        return 2
    for path in written:
        print(f"written: {path.relative_to(ROOT)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
