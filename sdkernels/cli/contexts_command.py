"""`sdkernels contexts`: what the teacher can be shown."""

from __future__ import annotations

import argparse
from typing import Any

from sdkernels import contexts
from sdkernels.cli.text import columns, parse_settings, record

MADE_OF = {
    "nothing": "that know nothing of the solution",
    "data": "made of the data set",
    "group": "made of other responses to the same problem",
    "attempt": "made of the response itself",
    "model": "that a model writes (critic_model_name_or_path or critic_server_url)",
}


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
        for made_of, title in MADE_OF.items():
            print(f"contexts {title}")
            found = [row for row in rows.values() if row["made_of"] == made_of]
            print(columns([(f"  {row['name']}", _line(row)) for row in found]) + "\n")
        print(
            "sdkernels contexts --show NAME renders one on a sample, with its full record and "
            "settings. An external\nteacher (teacher_model_kind) and thinking on or off "
            "(teacher_chat_template_kwargs) go with any of them."
        )
        return
    settings = parse_settings(options.set, texts=contexts.text_settings(options.show))
    context = contexts.get(options.show, **settings)
    fields = {
        key: getattr(context, key)
        for key in rows[context.name]
        if key not in ("name", "summary", "settings", "accepts", "needs")
    }
    print(f"{context.name}: {context.summary}\n")
    print(record({"needs": context.needs, **fields}))
    accepts = rows[context.name]["accepts"]
    if accepts:
        shown = [(f"{key} = {context.settings[key]}", accepts[key]) for key in accepts]
        print("\nsettings\n" + columns(shown))
    print("\n--- teacher prompt for the sample " + "-" * 45)
    print(contexts.render_sample(options.show, **settings))


def _line(row: dict[str, Any]) -> str:
    """Summary and record of one context in a paragraph."""
    parts = [row["summary"]]
    if row["needs"]:
        needs = " and ".join(need.replace("|", " or ") for need in row["needs"])
        parts.append(f"Needs: {needs}.")
    if row["leaks_answer"]:
        parts.append("Leaks the answer.")
    if row["settings"]:
        parts.append(f"Settings: {', '.join(row['settings'])}.")
    if row["on_empty"] != "never empty":
        parts.append(f"No signal: {row['on_empty'].removesuffix(': weight 0')}.")
    return " ".join(parts)
