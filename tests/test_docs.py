"""The documentation is true: its links lead somewhere, its code runs, its examples hold."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = sorted(path for path in DOCS.rglob("*.md") if "```python" in path.read_text("utf-8"))
# What a page's code takes for granted stands in a comment that a reader doesn't see.
SETUP = re.compile(r"^<!-- setup\n(.*?)^-->", flags=re.MULTILINE | re.DOTALL)
BLOCK = re.compile(r"^```python\n(.*?)^```", flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(DOCS)))
def test_code_of_a_page_runs_in_order(page: Path) -> None:
    if page.stem == "trl":
        pytest.importorskip("trl", reason="TRL is not installed (it needs Python 3.11)")
    text = page.read_text(encoding="utf-8")
    namespace: dict[str, object] = {"__name__": page.stem}
    try:
        for code in SETUP.findall(text) + BLOCK.findall(text):
            exec(compile(code, str(page.relative_to(ROOT)), "exec"), namespace)
    finally:
        if "teardown" in namespace:
            namespace["teardown"]()  # type: ignore[operator]


def with_examples() -> list[str]:
    paths = sorted((ROOT / "sdkernels").rglob("*.py"))
    named = [path for path in paths if ">>> " in path.read_text("utf-8")]
    return [".".join(path.relative_to(ROOT).with_suffix("").parts) for path in named]


@pytest.mark.parametrize("module", with_examples())
def test_examples_in_docstrings_hold(module: str) -> None:
    found = doctest.testmod(importlib.import_module(module))
    assert found.attempted > 0
    assert found.failed == 0


def test_the_site_builds_without_a_broken_link(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "docs", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    for name in ("recipes", "contexts", "training"):
        page = (tmp_path / f"{name}.html").read_text(encoding="utf-8")
        assert "table:" not in page
    api = (tmp_path / "api" / "engine.html").read_text(encoding="utf-8")
    assert "sdkernels.token_loss" in api
