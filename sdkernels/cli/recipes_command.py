"""`sdkernels recipes`: the losses."""

from __future__ import annotations

import argparse

from sdkernels import recipes
from sdkernels.cli.text import columns, record
from sdkernels.recipes import registry


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("--show", metavar="NAME", help="one recipe with its settings and source")


def run(options: argparse.Namespace, _rest: list[str]) -> None:
    """List all recipes, or show one."""
    rows = {row["name"]: row for row in recipes.table()}
    if options.show is None:
        print(columns([(name, row["summary"]) for name, row in rows.items()]))
        print("\nsdkernels recipes --show NAME gives settings, needs, defaults and source.")
        return
    name = recipes.get(options.show).name
    print(f"{name}: {rows[name]['summary']}\n")
    row = rows[name]
    print(record({key: row[key] for key in ("needs", "inputs", "context", "gates", "source")}))
    settings = [
        (f"{s['name']} = {s['default']}", f"{s['doc']} ({s['accepts']})") for s in row["settings"]
    ]
    print("\nsettings\n" + columns(settings) if settings else "\nno settings")
    if row["optional"]:
        meanings = [(name, registry.OPTIONAL[name]) for name in row["optional"]]
        print("\nper-token inputs that it can do without\n" + columns(meanings))
