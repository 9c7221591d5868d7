"""The command line: `sdkernels COMMAND ...`. Each command is a module with `add_arguments` and
`run`.
"""

from __future__ import annotations

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Sequence

from sdkernels._version import __version__

COMMANDS = {
    "demo": "train the embedded SmolLM2 under six conditions and write a report",
    "train": "train a model by self-distillation (YAML file and flags)",
    "eval": "accuracy, length, markers and entropy of a model on a problem set",
    "data": "make training data: sample verified traces, select examples by IFD",
    "report": "build report.html, plots and summary.json from run folders",
    "reproduce": "run a published experiment, at full scale or as a smoke test",
    "lab": "a small world, trained from scratch, in which self-distillation can be measured",
    "contexts": "list what a teacher can be shown; render one on a sample",
    "recipes": "list the losses with their settings and sources",
    "bench": "time and memory of a loss against other libraries and the bare matrix products",
    "env": "versions, devices, and which backend runs and why",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Returns:
        Exit status: 0 done, 1 the run stopped, 2 wrong input, 128 + signal when interrupted.
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    parser = argparse.ArgumentParser(
        prog="sdkernels",
        description="Losses for post-training language models over the exact full vocabulary.",
        epilog="`sdkernels COMMAND --help` explains one; SDKERNELS_TRACEBACK=1 shows tracebacks",
    )
    parser.add_argument("--version", action="version", version=f"sdkernels {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, summary in COMMANDS.items():
        # The command's module is imported (and with it transformers) only when it is the one asked
        # for.
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            add_help=name != "train",
            allow_abbrev=False,
            formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        )
        if arguments[:1] == [name]:
            module = importlib.import_module(f"sdkernels.cli.{name}_command")
            module.add_arguments(sub)
    # `train` reads its flags itself: they are the fields of its configuration.
    rest = arguments[1:] if arguments[:1] == ["train"] else []
    options = parser.parse_args(["train"] if rest else arguments)
    logging.basicConfig(format="%(message)s")
    # What other libraries note by the way (a font cache that was made) is not for the terminal.
    logging.getLogger("sdkernels").setLevel(logging.INFO)
    return _run(options, rest)


def _run(options: argparse.Namespace, rest: list[str]) -> int:
    module = importlib.import_module(f"sdkernels.cli.{options.command}_command")
    try:
        status = module.run(options, rest)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader, such as `head`, has what it wanted. Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # SIGPIPE, which Windows has no name for
    except KeyboardInterrupt:
        print(f"sdkernels: interrupted at once{_after(options.command)}", file=sys.stderr)
        return 130
    except (ValueError, TypeError, RuntimeError, OSError) as error:
        if os.environ.get("SDKERNELS_TRACEBACK"):
            raise
        message = " ".join(str(error).split())
        print(f"sdkernels {options.command}: {message or type(error).__name__}", file=sys.stderr)
        return _exit_status(error)
    return int(status or 0)


def _after(command: str) -> str:
    """What is left of a command that was interrupted, where it saves something as it goes."""
    if command in ("bench", "contexts", "recipes", "env"):
        return ""
    return (
        "; what was saved before is complete. A training goes on with the same command and "
        "--resume_from_checkpoint true"
    )


def _exit_status(error: Exception) -> int:
    """128 + signal for a run that was told to stop, 2 for wrong input, 1 for everything else."""
    signal_number = getattr(error, "signal_number", None)
    if signal_number is not None:
        return 128 + int(signal_number)
    return 2 if isinstance(error, (ValueError, TypeError)) else 1
