"""Each layer imports only from those before it; read off the source."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "sdkernels"

# Lowest first; names on one line are one layer.
LAYERS = [
    {"_version", "kernels"},
    {"rows"},
    {"engine"},
    {"ops"},
    {"recipes", "gates"},
    {"contexts"},
    {"train"},
    {"report", "integrations"},
    {"bench", "lab"},
    {"cli", "__main__"},
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}
# Tools for tests: they know torch and nothing of the package.
APART = {"testing"}


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path != PACKAGE / "__init__.py")


def layer_of(path: Path) -> str:
    return path.relative_to(PACKAGE).parts[0].removesuffix(".py")


def imported_layers(source: str) -> Iterator[tuple[int, str]]:
    """`(line, layer)` of each import from sdkernels; the layer is "" for the package itself."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            continue  # relative: stays in its own folder, as the next test checks
        elif isinstance(node, ast.ImportFrom) and node.module == "sdkernels":
            names = [f"sdkernels.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] == "sdkernels":
                yield node.lineno, parts[1] if len(parts) > 1 else ""


def violations(layer: str, source: str) -> list[str]:
    found = []
    for line, imported in imported_layers(source):
        if imported == layer:
            continue
        if layer in APART or imported in APART or imported not in RANK:
            found.append(f"line {line}: {layer} imports {imported or 'the package itself'}")
        elif RANK[imported] > RANK[layer]:
            found.append(f"line {line}: {layer} imports {imported}, which stands above it")
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_go_downwards(path: Path) -> None:
    layer = layer_of(path)
    assert layer in RANK or layer in APART, f"{layer} has no place in LAYERS yet: give it one"
    assert violations(layer, path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_are_absolute(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    levels = [node.level for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    assert not any(levels), "the layers are read off absolute imports"


@pytest.mark.parametrize(
    ("layer", "source", "expected"),
    [
        ("engine", "from sdkernels.rows import Side", []),
        ("engine", "import torch\nfrom sdkernels.engine.heads import LMHead", []),
        ("gates", "from sdkernels.recipes import get", []),
        (
            "engine",
            "def f():\n    from sdkernels.train import fit",
            ["line 2: engine imports train"],
        ),
        ("rows", "from sdkernels import engine", ["line 1: rows imports engine"]),
        ("train", "import sdkernels", ["line 1: train imports the package itself"]),
        ("train", "from sdkernels import token_loss", ["line 1: train imports token_loss"]),
        ("testing", "from sdkernels.rows import Side", ["line 1: testing imports rows"]),
        ("cli", "from sdkernels.report import study", []),
        ("report", "import sdkernels.cli", ["line 1: report imports cli"]),
    ],
)
def test_the_check_sees_what_it_should(layer: str, source: str, expected: list[str]) -> None:
    assert [found.split(", which")[0] for found in violations(layer, source)] == expected


@pytest.mark.parametrize("path", sorted((ROOT / "kernels").rglob("*.py")), ids=str)
def test_device_code_imports_torch_triton_and_its_siblings_only(path: Path) -> None:
    allowed = {"torch", "triton", *sys.stdlib_module_names}
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            assert {alias.name.split(".")[0] for alias in node.names} <= allowed
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 1 or (node.module or "").split(".")[0] in allowed
