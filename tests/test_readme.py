"""README tells the truth: its code runs, its commands and links exist, CI runs its test command."""

import re
from pathlib import Path

import pytest

from sdkernels.cli import COMMANDS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    *(str(path.relative_to(ROOT)) for path in sorted((ROOT / "docs").rglob("*.md"))),
]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def test_python_blocks_run_in_order() -> None:
    namespace: dict[str, object] = {}
    assert blocks("python")
    for block in blocks("python"):
        exec(compile(block, "README.md", "exec"), namespace)
    hidden, weight = namespace["hidden"], namespace["weight"]
    for tensor in (hidden, weight):
        assert tensor.grad.isfinite().all()
        assert tensor.grad.abs().max() > 0


def test_make_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z]+):", makefile, flags=re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z]+)", "\n".join(blocks("bash")))) | set(
        re.findall(r"`make ([a-z]+)", README)
    )
    assert {"demo", "test"} <= named
    assert named <= targets


def test_commands_exist() -> None:
    named = re.findall(
        r"^(?:\.venv/bin/)?sdkernels ([a-z]+)", "\n".join(blocks("bash")), re.MULTILINE
    )
    assert set(named) <= set(COMMANDS)


def test_ci_runs_the_test_command_of_the_readme() -> None:
    commands = [line.split("#")[0].strip() for line in "\n".join(blocks("bash")).splitlines()]
    assert "make test" in commands
    assert "make test" in (ROOT / ".ci" / "run").read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("document", DOCUMENTS)
def test_relative_links_and_paths_exist(document: str) -> None:
    path = ROOT / document
    text = path.read_text(encoding="utf-8")
    links = [link for link in re.findall(r"\]\(([^)#\s]+)", text) if "://" not in link]
    missing = [link for link in links if not (path.parent / link).exists()]
    paths = re.findall(r"`((?:sdkernels|kernels|bench|tests|docs)/[\w./-]*)`", text)
    missing += [name for name in paths if not (ROOT / name).exists()]
    assert missing == []
