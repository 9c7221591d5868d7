"""What the recipes and contexts of a study are, in the words of their registries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from sdkernels import contexts, recipes
from sdkernels.report.load import Run
from sdkernels.report.text import escape


def section(runs: Sequence[Run], taught: Iterable[str] = ()) -> str:
    """Return a list of each recipe and context that the page shows, one sentence each.

    `taught`: names of further contexts, those under which the teacher answered by itself. What
    the registries don't know, a recipe of somebody's own, is left out.
    """
    used = [run.summary.get("recipe") for run in runs]
    told = [*(run.summary.get("context") for run in runs), *taught]
    items = [
        *_entries("Recipe", used, lambda name: recipes.get(name).summary),
        *_entries("The teacher sees", told, lambda name: contexts.get(name).summary),
    ]
    return f'<dl class="methods">{"".join(items)}</dl>' if items else ""


def _entries(kind: str, names: Iterable[Any], summary: Callable[[str], str]) -> Iterable[str]:
    for name in dict.fromkeys(name for name in names if isinstance(name, str)):
        if name == "none":
            continue
        try:
            said = summary(name).rstrip(".")
        except ValueError:
            continue
        yield (
            f"<div><dt><small>{kind}</small> {escape(name)}</dt>"
            f"<dd>{escape(said[:1].upper() + said[1:])}.</dd></div>"
        )
