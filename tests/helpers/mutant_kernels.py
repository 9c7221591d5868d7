"""A copy of the kernels with one change, imported under a name of its own: to see tests fail."""

from __future__ import annotations

import importlib
import itertools
import shutil
import sys
from pathlib import Path
from types import ModuleType

from sdkernels import kernels
from sdkernels import rows as rows_package
from sdkernels.rows import RowBackend

CALLERS = ("triton_merge", "fused_rows", "triton_rows")
_numbers = itertools.count()


def mutated_package(folder: Path, file: str, old: str, new: str) -> str:
    """Name of an importable copy of `sdkernels.kernels` in which `old` is `new` in `file`.

    Raises:
        ValueError: `old` does not stand in the file exactly once, so this mutant tests nothing.
    """
    name = f"mutant_kernels_{next(_numbers)}"
    source = Path(kernels.__path__[0])
    shutil.copytree(source, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    path = folder / name / file
    text = path.read_text()
    if text.count(old) != 1:
        raise ValueError(f"{file}: {old!r} stands there {text.count(old)} times, expected once")
    path.write_text(text.replace(old, new))
    if str(folder) not in sys.path:
        sys.path.insert(0, str(folder))
    importlib.invalidate_caches()
    return name


def mutated_module(folder: Path, file: str, old: str, new: str) -> ModuleType:
    """The changed module itself."""
    name = mutated_package(folder, file, old, new)
    return importlib.import_module(f"{name}.{file.removesuffix('.py')}")


def mutated_rows(folder: Path, file: str, old: str, new: str) -> RowBackend:
    """`TritonRows` on a changed copy of the kernels."""
    name = mutated_package(folder, file, old, new)
    # The modules that call kernels, the last one calling the others.
    for module in CALLERS:
        text = (Path(rows_package.__path__[0]) / f"{module}.py").read_text()
        text = text.replace("sdkernels.kernels", name)
        for other in CALLERS:
            text = text.replace(f"sdkernels.rows.{other}", f"{name}_{other}")
        (folder / f"{name}_{module}.py").write_text(text)
    importlib.invalidate_caches()
    rows: RowBackend = importlib.import_module(f"{name}_triton_rows").TritonRows()
    return rows
