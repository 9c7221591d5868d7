"""What is measured is kept at once: the results file is written, whole, after every run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sdkernels.train.strict_json import strict

from . import files, results, tables
from .machine import machine
from .problem import Setting

NOT_REACHED = "not reached: the command was stopped, or it failed, before this run"


class Record:
    """The runs of one command, in a file after each of them where `path` is given.

    Whoever stops the command, or kills it, or takes its memory away, leaves the runs that were made
    and a list of those that were not.

    Attributes:
        failures: runs that failed outside a peer, a line for each with its reason.

    Raises:
        ValueError: nothing can be written at `path`, or it has something else in it than results.
            Better now than after the measurement.
    """

    def __init__(
        self,
        command: str,
        device: torch.device,
        settings: Sequence[Setting],
        path: Path | None = None,
    ) -> None:
        if path is not None:
            files.ensure_ours(path, files.is_results)
        self.path = path
        self._command, self._machine = command, machine(device)
        self._waiting = list(settings)
        self._runs: list[dict[str, Any]] = []
        self._left_out: list[dict[str, Any]] = []
        self.failures: list[str] = []

    @property
    def result(self) -> dict[str, Any]:
        """Content of the results file as of now."""
        waiting = [_left_out(setting, NOT_REACHED) for setting in self._waiting]
        return results.assemble(
            self._command, self._machine, self._runs, [*self._left_out, *waiting]
        )

    def add(self, run: dict[str, Any]) -> None:
        """A run of the first setting that waits."""
        self._waiting.pop(0)
        self._runs.append(_in_json(run))
        self._write()

    def leave_out(self, reason: str) -> None:
        """The first setting that waits is not run."""
        self._left_out.append(_left_out(self._waiting.pop(0), reason))
        self._write()

    def fail(self, reason: str) -> None:
        """The first setting that waits failed outside a peer."""
        setting = self._waiting[0]
        where = f"{setting.case.name}, {setting.shape.name}, T = {setting.tokens}"
        self.failures.append(f"{where}: {reason}")
        self.leave_out(f"failed: {reason}")

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Print the tables at the end of the block, however it ends, and name the file."""
        try:
            yield
        finally:
            print(tables.text(self.result))
            if self.path is not None and (self._runs or self._left_out):
                print(f"\nwritten to {self.path}", flush=True)

    def _write(self) -> None:
        if self.path is not None:
            results.write(self.path, self.result)


def _in_json(run: dict[str, Any]) -> dict[str, Any]:
    """The run without NaN and infinite numbers, which JSON lacks: such an error is null, and the
    row's reason, which tables show, says what it was.
    """
    rows = []
    for row in run["rows"]:
        said = [
            f"{name.replace('_', ' ')} is {row[name]}"
            for name in ("value_error", "gradient_error")
            if isinstance(row.get(name), float) and not math.isfinite(row[name])
        ]
        reason = ": ".join(filter(None, [row.get("reason"), ", ".join(said)]))
        rows.append(row | {"reason": reason} if said else row)
    found: dict[str, Any] = strict(run | {"rows": rows})
    return found


def _left_out(setting: Setting, reason: str) -> dict[str, Any]:
    return {
        "case": setting.case.name,
        "shape": setting.shape.name,
        "tokens": setting.tokens,
        "reason": reason,
    }
