"""Published experiments by name: one configuration file each, in `configs/`."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from sdkernels.train.config_file import read_yaml
from sdkernels.train.published import Published, read_published

# Of an installed package, and of the repository.
FOLDERS = (Path(__file__).parents[1] / "configs", Path(__file__).parents[2] / "configs")


@dataclass(frozen=True)
class Experiment:
    """A configuration file: its name (`study/file`), settings and published results."""

    name: str
    file: Path

    @property
    def study(self) -> str:
        """The folder, which holds the experiments of one paper."""
        return self.name.split("/")[0]

    def settings(self) -> dict[str, Any]:
        """The settings at full scale."""
        return read_yaml(self.file)

    def published(self) -> Published:
        """What the paper reports."""
        return read_published(self.file)


def configs_folder() -> Path:
    """Where the configurations are: inside the installed package, or in the repository.

    Raises:
        ValueError: in neither.
    """
    for folder in FOLDERS:
        if any(folder.glob("*/_study.yaml")):
            return folder
    raise ValueError(
        f"the configurations of the published experiments are missing: expected them in "
        f"{FOLDERS[0]} (installed) or {FOLDERS[1]} (repository); install the package again"
    )


def experiments() -> dict[str, Experiment]:
    """All experiments by name: the files beside a `_study.yaml`, but for those that begin with `_`,
    which are bases of others.
    """
    folder = configs_folder()
    studies = [file.parent for file in folder.glob("*/_study.yaml")]
    files = [file for study in studies for file in study.glob("[!_]*.yaml")]
    files.sort(key=lambda file: _natural(file, folder))
    found = (Experiment(f"{file.parent.name}/{file.stem}", file) for file in files)
    return {experiment.name: experiment for experiment in found}


def find(name: str) -> list[Experiment]:
    """The experiment of this name, or all of the study of this name.

    Raises:
        ValueError: there is none, with the nearest names.
    """
    known = experiments()
    if name in known:
        return [known[name]]
    study = [experiment for experiment in known.values() if experiment.study == name.rstrip("/")]
    if study:
        return study
    raise ValueError(
        f"unknown experiment {name!r}{_nearest(name, known)}; `sdkernels reproduce` lists them all"
    )


def _nearest(name: str, known: Iterable[str]) -> str:
    names = list(known)
    names += sorted({full.split("/")[0] for full in names})
    near = get_close_matches(name, names, n=3, cutoff=0.5)
    near += [full for full in names if full.split("/")[-1] == name and full not in near]
    return f"; did you mean {' or '.join(near)}?" if near else ""


def _natural(file: Path, folder: Path) -> list[tuple[int, str]]:
    """So that coverage-8 comes before coverage-64."""
    words = str(file.relative_to(folder)).replace("14k", "14000").replace(".", "-").split("-")
    return [(int(word), "") if word.isdigit() else (10**9, word) for word in words]
