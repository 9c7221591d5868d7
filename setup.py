"""Facts about the package. Nothing here looks at the machine it is installed on."""

from pathlib import Path
from runpy import run_path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent

TRAIN = [
    "accelerate",
    "datasets",
    "gguf",
    "jinja2",
    "math-verify",
    "matplotlib",
    "peft",
    "pyyaml",
    "reasoning-gym",
    "rich",
    "tqdm",
    "transformers>=5.10",
]
# bench/ lies at the top, where `python -m bench` finds it, and is `sdkernels.bench` when installed.
BENCH_PACKAGES = ["sdkernels.bench", "sdkernels.bench.peers"]
# TRL has left Python 3.10: without it its tests are skipped and its peers left out.
TRL = "trl==1.16.0; python_version >= '3.11'"
BENCH = ["liger-kernel", "pytest-benchmark", TRL]
# More peers for a machine with a GPU; where one is missing, its row says so.
BENCH_GPU = [*BENCH, "cut-cross-entropy", "flash-linear-attention", "quack-kernels"]
DOCS = ["furo", "myst-parser", "sphinx", "sphinx-copybutton"]
DEV = [
    *DOCS,
    "build",
    "codespell[toml]",
    "kernels>=0.17",
    "liger-kernel==0.8.5",
    "mypy>=2.0",
    "pytest>=8",
    "pytest-timeout",
    "pytest-xdist",
    "ruff>=0.17,<0.18",
    "setuptools>=77",
    TRL,
    # Comes with torch on GPU machines; here the kernel tests interpret and compile with it.
    "triton>=3.6; platform_system == 'Linux'",
    "types-PyYAML",
]

setup(
    name="sdkernels",
    version=run_path(str(ROOT / "sdkernels" / "_version.py"))["__version__"],
    description="Per-token losses over the exact full vocabulary, with no [tokens, vocab] tensor",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license_expression="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    # kernels/ has no __init__.py: a top-level package called `kernels` would shadow Hugging Face's.
    packages=[
        *find_packages(include=["sdkernels", "sdkernels.*"]),
        "sdkernels.kernels",
        "sdkernels.configs",
        *BENCH_PACKAGES,
    ],
    package_dir={
        "sdkernels": "sdkernels",
        "sdkernels.kernels": "kernels/vocab",
        "sdkernels.bench": "bench",
        "sdkernels.configs": "configs",
    },
    package_data={
        "sdkernels.configs": ["*/*.yaml"],
        "": ["py.typed", "*.html", "*.css", "*.js", "*.yaml", "*.json", "templates/*"],
    },
    install_requires=["torch>=2.11"],
    extras_require={
        "train": TRAIN,
        "bench": BENCH,
        "bench-gpu": BENCH_GPU,
        "dev": DEV,
        "docs": DOCS,
    },
    entry_points={"console_scripts": ["sdkernels = sdkernels.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
