"""Read a configuration from a YAML file and flags: flags win over the file, unknown names are
refused.
"""

import argparse
from collections.abc import Iterable, Sequence
from dataclasses import fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NoReturn

import yaml
from transformers import HfArgumentParser

from sdkernels.train.config import MAPPING_FIELDS, SelfDistillConfig
from sdkernels.train.yaml_text import read_text

# Shorter spellings of settings that carry transformers' or TRL's longer names.
SHORT_NAMES = {"model": "model_name_or_path", "out": "output_dir", "steps": "max_steps"}

# Keys of a configuration file that are no settings.
NOT_SETTINGS = {"base", "published"}


class ConfigParser(HfArgumentParser):
    """`HfArgumentParser` over `SelfDistillConfig` with `--config file.yaml`, one-line errors and no
    abbreviations.
    """

    def __init__(
        self, config_type: type[SelfDistillConfig] = SelfDistillConfig, **settings: Any
    ) -> None:
        super().__init__(config_type, allow_abbrev=False, **settings)
        self.config_type = config_type
        self.add_argument(
            "--config",
            metavar="FILE",
            help="YAML file with any of these settings; flags win over it.",
        )

    def error(self, message: str) -> NoReturn:
        """Raise instead of printing two hundred lines of usage."""
        raise ValueError(message)

    def parse(self, arguments: Sequence[str]) -> SelfDistillConfig:
        """The configuration that file and flags describe.

        Raises:
            ValueError: unknown flag or key (with the nearest known one), a value of the wrong kind,
                an unreadable file, two flags for one mapping.
        """
        _refuse_twice(arguments)
        only_file = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        only_file.add_argument("--config")
        file = only_file.parse_known_args(list(arguments))[0].config
        # Only what was given ends up in the configuration, a value that is the default included: a
        # recipe must not replace it.
        for action in self._actions:
            action.default = argparse.SUPPRESS
        if file is not None:
            # argparse runs a default through the flag's type if it is text, so that `1e-5`, text
            # to YAML 1.1, becomes a number; all else the configuration checks itself.
            self.set_defaults(**read_yaml(file, self.config_type))
        parsed, unknown = self.parse_known_args(list(arguments))
        if unknown:
            raise ValueError(_unknown_flag(unknown[0], self.config_type))
        given = vars(parsed)
        given.pop("config", None)
        return self.config_type(**given)


def parse_config(
    arguments: Sequence[str] = (), *, config_type: type[SelfDistillConfig] = SelfDistillConfig
) -> SelfDistillConfig:
    """Parse flags (and the `--config` file they name) into a configuration. Errors are
    `ValueError`s of one line.
    """
    return ConfigParser(config_type).parse(arguments)


def read_yaml(
    file: str | Path, config_type: type[SelfDistillConfig] = SelfDistillConfig
) -> dict[str, Any]:
    """Settings in a YAML file, with every key checked against the fields of `config_type`.

    A file with `base: other.yaml` (a path from its own folder) starts from the settings of that
    one; its own replace them, mappings as a whole. `published:` is for `sdkernels reproduce` and
    no setting.
    """
    settings: dict[str, Any] = {}
    for path, content in reversed(base_chain(file)):
        own = {
            SHORT_NAMES.get(str(key), key): value
            for key, value in content.items()
            if key not in NOT_SETTINGS
        }
        refuse_unknown(own, str(path), config_type)
        settings |= own
    return settings


def refuse_unknown(
    settings: Iterable[str], place: str, config_type: type[SelfDistillConfig] = SelfDistillConfig
) -> None:
    """Raise a `ValueError` with the nearest names for the first name that is no setting."""
    known = {f.name for f in fields(config_type) if f.init}
    for name in settings:
        if name not in known:
            near = _nearest(str(name), known | NOT_SETTINGS)
            raise ValueError(f"{place}: unknown setting {name!r}{near}")


def base_chain(file: str | Path) -> list[tuple[Path, dict[str, Any]]]:
    """The file and those it is based on, nearest first, each with what is written in it."""
    path = Path(file)
    if not path.is_file():
        raise ValueError(f"--config {file}: no such file")
    chain: list[tuple[Path, dict[str, Any]]] = []
    while True:
        content = _read_mapping(path)
        chain.append((path, content))
        base = content.get("base")
        if base is None:
            return chain
        if not isinstance(base, str) or not (path.parent / base).is_file():
            raise ValueError(
                f"{path}: base={base!r}: there is no such file in {path.parent}; expected the path "
                "of another YAML file, from the folder of this one"
            )
        path = path.parent / base
        if path.resolve() in [known.resolve() for known, _ in chain]:
            names = " -> ".join([known.name for known, _ in chain] + [path.name])
            raise ValueError(f"{file}: its bases go in a circle: {names}")


def _read_mapping(path: Path) -> dict[str, Any]:
    try:
        content = read_text(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise ValueError(f"{path}: expected `name: value` lines, got a {type(content).__name__}")
    return content


def write_yaml(config: SelfDistillConfig, file: Path) -> None:
    """Write what differs from the defaults, so that `--config file` reproduces the run."""
    file.write_text(
        yaml.safe_dump(config.changed(), sort_keys=True, allow_unicode=True), encoding="utf-8"
    )


def _refuse_twice(arguments: Sequence[str]) -> None:
    """A second flag of a mapping would drop the settings of the first."""
    flags = [word.partition("=")[0].replace("-", "_") for word in arguments]
    for name in MAPPING_FIELDS:
        if flags.count(f"__{name}") > 1:
            raise ValueError(
                f"--{name} is given twice; write its settings as one, key=value,key=value"
            )


def _unknown_flag(flag: str, config_type: type[SelfDistillConfig]) -> str:
    if not flag.startswith("--"):
        return f"unexpected argument {flag!r}: settings are given as --name value"
    name = flag[2:].partition("=")[0].replace("-", "_")
    return (
        f"unknown setting --{name}{_nearest(name, {f.name for f in fields(config_type) if f.init})}"
    )


def _nearest(name: str, known: set[str]) -> str:
    near = get_close_matches(name, sorted(known), n=3, cutoff=0.6)
    return (
        f"; did you mean {' or '.join(near)}?"
        if near
        else "; `sdkernels train --help` lists them all"
    )
