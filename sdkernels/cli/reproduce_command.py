"""`sdkernels reproduce`: published experiments, at full scale or as a smoke test."""

from __future__ import annotations

import argparse
import textwrap
from itertools import groupby
from pathlib import Path
from typing import Any

from sdkernels.cli.text import columns, parse_settings, record

CAUTION = {
    "smoke": "CAUTION: smoke scale runs the method on a model of 135 million parameters, one-digit "
    "sums and a handful of steps. It shows that the experiment runs and what it feeds into "
    "training. These numbers can neither confirm nor contradict the published ones.",
    "full": "CAUTION: one seed, and the differences above. Compare intervals, not single numbers.",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("name", nargs="?", help="an experiment, or a study for all of its own")
    parser.add_argument(
        "--scale", default="smoke", help="smoke: minutes on a CPU; full: as published, on GPUs"
    )
    parser.add_argument("--out", type=Path, default=Path("runs/reproduce"), help="folder of runs")
    parser.add_argument(
        "--show", action="store_true", help="show settings and numbers, run nothing"
    )
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="a setting that wins over the experiment's, e.g. max_steps=5; repeatable",
    )


def run(options: argparse.Namespace, _rest: list[str]) -> None:
    """List the experiments, show one, or run it and print our numbers beside the published."""
    from sdkernels.train.config_file import refuse_unknown
    from sdkernels.train.experiments import configs_folder, experiments, find
    from sdkernels.train.reproduce import SCALES, reproduce
    from sdkernels.train.settings import check_choice

    check_choice("--scale", options.scale, SCALES)
    if options.name is None:
        print(_listing(experiments().values()))
        print(
            f"\nThe files are in {configs_folder()}. `sdkernels reproduce NAME` runs the smoke "
            "scale of one\n(or of all of a study), `--scale full` the published one, `--show` none."
        )
        return
    found = find(options.name)
    changes = parse_settings(options.set)
    refuse_unknown(changes, "--set")
    for experiment in found:
        title = experiment.settings().get("title", "")
        print(f"{experiment.name}: {title} ({options.scale} scale)", flush=True)
        if options.show:
            print(_settings(experiment, options.scale, options.out, changes))
            print("\n" + _published(experiment) + "\n")
            continue
        summary = reproduce(experiment, scale=options.scale, out=options.out, changes=changes)
        print(f"\n{_ours(summary)}\n\n{_published(experiment)}")
        print("\n" + textwrap.fill(_caution(experiment, options.scale), 100) + "\n", flush=True)
    if not options.show:
        from sdkernels import report

        folder = options.out / (found[0].study if len(found) > 1 else "")
        if len(found) == 1:
            folder = options.out / f"{found[0].name}-{options.scale}"
        print(f"report: {report.build(folder)}")


def _listing(known: Any) -> str:
    parts = []
    for study, group in groupby(known, key=lambda experiment: experiment.study):
        rows = [(f"  {e.name}", e.settings().get("title", "")) for e in group]
        source = find_source(study)
        parts.append(f"{study}  ({source})\n{columns(rows)}")
    return "\n\n".join(parts)


def find_source(study: str) -> str:
    """The paper of a study."""
    from sdkernels.train.experiments import configs_folder
    from sdkernels.train.published import read_published

    return read_published(configs_folder() / study / "_study.yaml").source


def _settings(experiment: Any, scale: str, out: Path, changes: dict[str, Any]) -> str:
    from sdkernels.train.reproduce import smoke_settings

    settings = experiment.settings()
    if scale == "smoke":
        settings = smoke_settings(settings)[0]
    return record(settings | changes)


def _ours(summary: dict[str, Any]) -> str:
    from sdkernels.report.fields import lookup
    from sdkernels.train.evaluation import at_k

    before, after = summary["before"] or {}, summary["after"] or {}
    problems = f" ({after.get('n')} problems x {after.get('k')} samples)" if after else ""
    rows = [(f"ours{problems}", "before", "after")]
    percents = [{name: 100 * x for name, x in at_k(side).items()} for side in (before, after)]
    ks = {str(side.get("k")) for side in (before, after)}
    for name in dict.fromkeys((*percents[0], *percents[1])):
        # Pass@ of fewer answers than were sampled has no counterpart in a paper.
        if name.partition("@")[2] in ks:
            first, last = (_number(side.get(name)) for side in percents)
            rows.append((f"{name} (%)", first, last))
    for path, label in (
        (("completion_length",), "response length (tokens)"),
        (("markers_published", "per_response"), "E(y) (markers per response, as published)"),
        (("markers_per_1k",), "epistemic markers per 1000 tokens (whole words)"),
        (("entropy",), "entropy (nats)"),
    ):
        rows.append((label, _number(lookup(before, *path)), _number(lookup(after, *path))))
    last_step = summary["last"] or {}
    for key, label in (
        ("gap", "teacher - student log-prob, last step (nats)"),
        ("signal_share", "share of rows with a context, last step"),
    ):
        if last_step.get(key) is not None:
            rows.append((label, "", _number(last_step[key])))
    return _table(rows)


def _published(experiment: Any) -> str:
    from sdkernels.train.published import CONFIDENCE

    published = experiment.published()
    how = CONFIDENCE[published.confidence]
    rows = [("published", "before", "after")]
    for result in published.results:
        after = _number(result.after if result.value is None else result.value)
        where = f"({result.where})" if result.where else ""
        after = " ".join(part for part in (after, result.finding, where) if part)
        rows.append((result.metric, _number(result.before), after))
    if len(rows) == 1:
        rows.append(("no number that we know of", "", ""))
    differs = [
        textwrap.fill(text, 98, initial_indent="- ", subsequent_indent="  ")
        for text in published.differs
    ]
    lines = [_table(rows), f"source: {published.source} ({how})"]
    if differs:
        lines += ["\nwhat differs from the paper", *differs]
    return "\n".join(lines)


def _caution(experiment: Any, scale: str) -> str:
    from sdkernels.train.reproduce import smoke_settings

    notes = smoke_settings(experiment.settings())[1] if scale == "smoke" else []
    return CAUTION[scale] + (f" Besides, {'; '.join(notes)}." if notes else "")


def _table(rows: list[tuple[str, str, str]]) -> str:
    first, second = (max(len(row[i]) for row in rows) + 2 for i in (0, 1))
    return "\n".join(
        f"{name.ljust(first)}{before.ljust(second)}{after}".rstrip() for name, before, after in rows
    )


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"
