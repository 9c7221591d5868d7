"""The Triton kernels as a package for Hugging Face's Kernel Hub, from `kernels/vocab`.

    python -m sdkernels.integrations.huggingface.hub FOLDER

writes what `kernels.get_local_kernel` loads: one build directory a backend (`build/torch-cuda`,
`torch-rocm`, `torch-xpu`; `torch-cpu` for Triton's interpreter), each with the same Python files
and its `metadata.json`, and a README. The kernels know torch, Triton and each other only, so the
files are copied as they are.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import sdkernels.kernels
from sdkernels._version import __version__

BACKENDS = ("cuda", "rocm", "xpu", "cpu")
NAME = "sdkernels-vocab"
LICENSE = "Apache-2.0"
# The compile table and its cases belong to the build, not to users.
LEFT_OUT = ("aot.py", "aot_cases.py", "resources.json")

README = """---
license: apache-2.0
tags:
- kernels
---

# {name}

Triton kernels of sdkernels {version}: statistics of rows of logits (log-probs, entropy, KL, JSD)
and their gradients, in one pass each. `from kernels import get_kernel`; the modules are those of
`sdkernels.kernels`. Losses without logits are in the sdkernels package itself.
"""


def export_kernels(folder: str | Path) -> list[Path]:
    """Write the Kernel Hub package of this installation into `folder`.

    Args:
        folder: is made if it does not exist; must not hold a `build` folder.

    Returns:
        The build directories.

    Raises:
        FileExistsError: there is a package already.
    """
    folder = Path(folder)
    build = folder / "build"
    if build.exists():
        raise FileExistsError(f"{build} exists: remove it, or choose another folder")
    sources = sorted(Path(sdkernels.kernels.__file__).parent.glob("*.py"))
    made = []
    for backend in BACKENDS:
        target = build / f"torch-{backend}"
        target.mkdir(parents=True)
        for source in sources:
            if source.name not in LEFT_OUT:
                shutil.copyfile(source, target / source.name)
        (target / "metadata.json").write_text(json.dumps(_metadata(backend), indent=2) + "\n")
        made.append(target)
    (folder / "README.md").write_text(README.format(name=NAME, version=__version__))
    return made


def main(argv: Sequence[str] | None = None) -> None:
    """Write the package into the folder named on the command line."""
    parser = argparse.ArgumentParser(description="Export the kernels for the Kernel Hub.")
    parser.add_argument("folder", type=Path, help="where the package goes")
    flags = parser.parse_args(argv)
    for path in export_kernels(flags.folder):
        print(path)


def _metadata(backend: str) -> dict[str, object]:
    return {
        "id": f"{NAME}-{__version__}-{backend}",
        "name": NAME,
        "version": 1,
        "license": LICENSE,
        "python-depends": [],
        "backend": {"type": backend},
    }


if __name__ == "__main__":
    main()
