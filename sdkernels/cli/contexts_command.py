"""`sdkernels contexts`: what the teacher can be shown."""

from __future__ import annotations

import argparse

from sdkernels import contexts
from sdkernels.cli.text import columns, parse_settings, record


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("--show", metavar="NAME", help="render one context on a built-in sample")
    parser.add_argument(
        "--set",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="a setting of the context shown, e.g. choose=shortest; repeatable",
    )


def run(options: argparse.Namespace, _rest: list[str]) -> None:
    """List all contexts, or render one with its record."""
    rows = {row["name"]: row for row in contexts.table()}
    if options.show is None:
        if options.set:
            raise ValueError("--set needs --show NAME")
        print(columns([(name, row["summary"]) for name, row in rows.items()]))
        print("\nsdkernels contexts --show NAME renders one on a sample, with its record.")
        return
    settings = parse_settings(options.set)
    context = contexts.get(options.show, **settings)
    fields = {
        key: value
        for key, value in rows[context.name].items()
        if key not in ("name", "summary", "settings")
    }
    print(f"{context.name}: {context.summary}\n")
    print(record({**fields, "settings": context.settings}))
    print("\n--- teacher prompt for the sample " + "-" * 45)
    print(contexts.render_sample(options.show, **settings))
