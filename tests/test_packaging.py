"""What a user gets from the wheel and from the editable install, tried in child processes."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

import sdkernels

ROOT = Path(__file__).parents[1]
SHIPPED = [
    "sdkernels",
    "kernels",
    "configs",
    "bench",
    "setup.py",
    "pyproject.toml",
    "README.md",
    "LICENSE",
]
# Importing these costs torch and nothing else ...
LIGHT = ["cli", "contexts", "gates", "recipes", "report", "testing"]
# ... because what is heavy or optional is imported where it is used.
HEAVY = [
    "accelerate",
    "datasets",
    "gguf",
    "jinja2",
    "liger_kernel",
    "math_verify",
    "matplotlib",
    "peft",
    "reasoning_gym",
    "rich",
    "transformers",
    "trl",
    "yaml",
]


def python(code: str, *, cwd: Path, path: Path | None = None) -> str:
    """What `python -c code` prints, run in `cwd` with `path` before the installed packages."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    if path:
        environment["PYTHONPATH"] = str(path)
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=cwd, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def pip(*arguments: str, cwd: Path) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", *arguments]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy so that no build folder appears in the tree."""
    source = tmp_path_factory.mktemp("source")
    for name in SHIPPED:
        if (ROOT / name).is_dir():
            skip = shutil.ignore_patterns("__pycache__", ".*")
            shutil.copytree(ROOT / name, source / name, ignore=skip)
        else:
            shutil.copy(ROOT / name, source / name)
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(out), ".", cwd=source)
    (built,) = out.glob("*.whl")
    return built


def test_wheel_holds_the_package_and_nothing_else(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert {name.split("/")[0] for name in names} == {
        "sdkernels",
        f"sdkernels-{sdkernels.__version__}.dist-info",
    }
    folders = {
        "sdkernels": ROOT / "sdkernels",
        "sdkernels/kernels": ROOT / "kernels" / "vocab",
        "sdkernels/configs": ROOT / "configs",
    }
    expected = {
        f"{target}/{path.relative_to(folder).as_posix()}"
        for target, folder in folders.items()
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith((".", "__pyc")) for part in path.parts)
    }
    # Of bench/ the code, not the recorded results.
    expected |= {
        f"sdkernels/{path.relative_to(ROOT).as_posix()}" for path in (ROOT / "bench").rglob("*.py")
    }
    assert {name for name in names if name.startswith("sdkernels/")} == expected


def test_wheel_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = f"sdkernels-{sdkernels.__version__}.dist-info"
    metadata = archive.read(f"{info}/METADATA").decode()
    lines = metadata.splitlines()
    assert "Requires-Python: >=3.10" in lines
    assert "License-Expression: Apache-2.0" in lines
    base = [line for line in lines if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert base == ["Requires-Dist: torch>=2.11"]
    assert "sdkernels = sdkernels.cli:main" in archive.read(f"{info}/entry_points.txt").decode()
    assert f"{info}/licenses/LICENSE" in archive.namelist()


def test_installed_wheel_imports_the_mapped_package(wheel: Path, tmp_path: Path) -> None:
    site = tmp_path / "site"
    pip("install", "--no-deps", "--no-index", "--target", str(site), str(wheel), cwd=tmp_path)
    code = (
        "import sdkernels, sdkernels.kernels as k; print(sdkernels.__file__, k.__file__, sep='\\n')"
    )
    package, kernels = map(Path, python(code, cwd=tmp_path, path=site).splitlines())
    assert package == site / "sdkernels" / "__init__.py"
    assert kernels == site / "sdkernels" / "kernels" / "__init__.py"
    code = "from sdkernels.bench import peers; print(peers.__file__, len(peers.load()))"
    found, count = python(code, cwd=tmp_path, path=site).split()
    assert Path(found) == site / "sdkernels" / "bench" / "peers" / "__init__.py"
    assert int(count) > 20


def test_editable_install_imports_the_mapped_package_from_anywhere(tmp_path: Path) -> None:
    for cwd in (ROOT, tmp_path):
        found = python("import sdkernels.kernels as k; print(k.__file__)", cwd=cwd)
        assert Path(found) == ROOT / "kernels" / "vocab" / "__init__.py"
        found = python("import sdkernels.bench as b; print(b.__file__)", cwd=cwd)
        assert Path(found) == ROOT / "bench" / "__init__.py"


def test_import_kernels_from_the_repo_root_is_not_ours() -> None:
    """It is Hugging Face's where that is installed, else a namespace portion without a file."""
    code = "import kernels; print(kernels.__file__, hasattr(kernels, 'unavailable_reason'))"
    file, ours = python(code, cwd=ROOT).split()
    assert ours == "False"
    assert file == "None" or (ROOT / "kernels") not in Path(file).parents


def test_an_installed_kernels_package_wins_from_the_repo_root(tmp_path: Path) -> None:
    """Hugging Face's `kernels`, which transformers imports, stands later on the path."""
    package = tmp_path / "kernels"
    package.mkdir()
    (package / "__init__.py").write_text("who = 'installed'\n", encoding="utf-8")
    code = "import kernels, sdkernels.kernels; print(kernels.who, kernels.__file__)"
    assert python(code, cwd=ROOT, path=tmp_path) == f"installed {package / '__init__.py'}"


@pytest.mark.parametrize("module", ["sdkernels", *(f"sdkernels.{name}" for name in LIGHT)])
def test_import_is_light(module: str, tmp_path: Path) -> None:
    code = f"import sys, {module}; print([name for name in {HEAVY} if name in sys.modules])"
    assert python(code, cwd=tmp_path) == "[]"


def test_version_is_in_one_place() -> None:
    assert importlib.metadata.version("sdkernels") == sdkernels.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert f"## {sdkernels.__version__}" in changelog
