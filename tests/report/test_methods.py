from pathlib import Path
from typing import Any

from sdkernels import contexts, recipes
from sdkernels.report import methods
from sdkernels.report.load import Run


def run_with(recipe: Any, context: Any) -> Run:
    return Run(Path(), "", {"recipe": recipe, "context": context})


def test_each_recipe_and_context_is_explained_once_by_its_registry() -> None:
    runs = [run_with("dasd", "sibling_solution"), run_with("dasd", "none"), run_with("grpo", None)]
    body = methods.section(runs, ["none", "hint", "sibling_solution"])
    assert body.count("<dd>") == 4
    for name in ("dasd", "grpo"):
        said = recipes.get(name).summary
        assert f"{name}</dt><dd>{said[0].upper()}{said[1:]}.</dd>" in body
    for name in ("sibling_solution", "hint"):
        assert f"{name}</dt><dd>{contexts.get(name).summary}</dd>" in body


def test_what_no_registry_knows_is_left_out() -> None:
    assert methods.section([run_with("my_own<b>", "mine"), run_with(None, ["hint"])]) == ""
