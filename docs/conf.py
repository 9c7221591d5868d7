"""Sphinx: `make docs` builds the site into build/site; any warning, such as a broken link, fails.

Tables of recipes, contexts and settings come from the code, so that they cannot go stale. A page
asks for one by a comment of its own on a line: `<!-- table: recipes -->`.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import fields

from sphinx.application import Sphinx

from sdkernels import __version__, contexts, recipes
from sdkernels.train.config import SelfDistillConfig

project = "sdkernels"
author = "The sdkernels authors"
release = version = __version__
html_title = f"sdkernels {__version__}"
html_theme = "furo"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
]
myst_heading_anchors = 3
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented_params"
autodoc_member_order = "bysource"
# Docstrings here are Markdown-like: `name` is code, nothing else is marked up.
default_role = "code"
napoleon_numpy_docstring = False

MARK = re.compile(r"^<!-- table: (\w+) -->$", flags=re.MULTILINE)


def recipes_table() -> str:
    parts = []
    for record in recipes.table():
        inputs = ", ".join(f"`{name}`" for name in record["inputs"])
        rows = [
            (f"`{item['name']}`", f"`{item['default']!r}`", f"{item['doc']} ({item['accepts']})")
            for item in record["settings"]
        ]
        parts.append(
            f"## {record['name']}\n\n{_sentence(record['summary'])}\n\n"
            f"Needs: {', '.join(record['needs']) or 'nothing'}. Reads {inputs} of `tokens`.\n\n"
            + _table(("setting", "default", "meaning"), rows)
            + f"Source: {_sentence(record['source'])}\n"
        )
    return "\n".join(parts)


def contexts_table() -> str:
    parts = []
    for record in contexts.table():
        facts = [f"Needs: {', '.join(record['needs']).replace('|', ' or ') or 'nothing'}."]
        facts += ["Leaks the answer."] * record["leaks_answer"]
        facts += ["Generates text first."] * record["generates"]
        rows = [
            (f"`{name}`", f"`{default!r}`", record["accepts"][name])
            for name, default in record["settings"].items()
        ]
        keys = ("on_empty", "order", "roles", "truncation", "thinking")
        about = "\n".join(f"- {key.replace('_', ' ')}: {record[key]}" for key in keys)
        parts.append(
            f"## {record['name']}\n\n{_sentence(record['summary'])} {' '.join(facts)}\n\n"
            f"{about}\n\n"
            + _table(("setting", "default", "accepts"), rows)
            + f"Source: {_sentence(record['source'])}\n"
        )
    return "\n".join(parts)


def settings_table() -> str:
    own = set(SelfDistillConfig.__annotations__)
    rows = [
        (f"`{item.name}`", f"`{item.default!r}`", item.metadata["help"])
        for item in fields(SelfDistillConfig)
        if item.name in own
    ]
    return _table(("setting", "default", "meaning"), rows)


def _sentence(text: str) -> str:
    return text[0].upper() + text[1:].rstrip(".") + "."


def _table(head: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    if not rows:
        return ""
    lines = [head, tuple("---" for _ in head), *rows]
    return (
        "\n".join(
            "| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines
        )
        + "\n\n"
    )


TABLES: dict[str, Callable[[], str]] = {
    "recipes": recipes_table,
    "contexts": contexts_table,
    "settings": settings_table,
}


def fill_tables(app: Sphinx, page: str, source: list[str]) -> None:
    """Replace every mark by its table; an unknown name is a KeyError, which stops the build."""
    source[0] = MARK.sub(lambda match: TABLES[match[1]](), source[0])


def to_restructured_text(
    app: Sphinx, what: str, name: str, item: object, options: object, lines: list[str]
) -> None:
    """|x| is an absolute value in our docstrings, and `Example`s a plural."""
    for i, line in enumerate(lines):
        line = re.sub(r"(`[^`]*`)|\|", lambda m: m[1] or "\\|", line)
        lines[i] = re.sub(r"(`[^`]+`)(?=\w)", r"\1\\ ", line)


def setup(app: Sphinx) -> None:
    app.connect("source-read", fill_tables)
    app.connect("autodoc-process-docstring", to_restructured_text)
