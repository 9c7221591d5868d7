"""`sdkernels bench`: one case at one shape, every peer, against the bare matrix products."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path
from typing import Any

import torch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags of this command."""
    parser.add_argument("--case", default="kl-teacher-student", help="what is computed")
    parser.add_argument("--shape", default="small", help="whose output layer, or DxV")
    parser.add_argument("--tokens", type=int, nargs="+", default=[1024], help="T, one run for each")
    parser.add_argument(
        "--peers", help="names with commas between; default: all that have the case"
    )
    parser.add_argument("--frozen-head", action="store_true", help="no gradient for the head")
    parser.add_argument(
        "--own-teacher",
        action="store_true",
        help="the teacher uses the student's head (self-distillation), not a model of its own",
    )
    parser.add_argument("--dtype", help="default: bfloat16 on a GPU, float32 on CPU")
    parser.add_argument("--device", help="cpu or cuda; default: cuda if there is one")
    parser.add_argument("--repeats", type=int, default=20, help="timed calls of each")
    parser.add_argument("--seconds", type=float, default=60.0, help="time limit of a run's repeats")
    parser.add_argument(
        "--out",
        type=Path,
        help="JSON file for the results; one of an earlier run is replaced, another file is not",
    )
    parser.add_argument(
        "--plan", action="store_true", help="count FLOPs, bytes, chunks and memory; run nothing"
    )
    parser.add_argument("--list", action="store_true", help="cases, shapes and peers")


def run(options: argparse.Namespace, _rest: list[str]) -> int:
    """Print the plan, the lists, or the measured tables; 1 where a run failed outside a peer."""
    if options.list:
        print(_lists())
        return 0
    settings = _settings(options)
    if options.plan:
        from sdkernels.bench import plan

        print("\n\n".join(plan.text(setting) for setting in settings))
        return 0
    return _measure(options, settings)


def _settings(options: argparse.Namespace) -> list[Any]:
    """One setting for each T; wrong input stops here."""
    from sdkernels.bench import cases, names, shapes
    from sdkernels.bench.problem import Setting

    case, shape = cases.get(options.case), shapes.get(options.shape)
    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    device = names.pick("device", device, ("cpu", "cuda"))
    if device == "cuda" and not torch.cuda.is_available() and not options.plan:
        raise ValueError("--device cuda: torch sees no GPU here; use --device cpu, or --plan")
    # The plan is that of a GPU wherever it is printed.
    on_gpu = device == "cuda" or options.plan
    dtype = names.pick("dtype", options.dtype or ("bfloat16" if on_gpu else "float32"), DTYPES)
    if options.own_teacher and not case.teacher:
        raise ValueError(f"--own-teacher: the case {case.name!r} has no teacher")
    if options.frozen_head and not case.backward:
        raise ValueError(f"--frozen-head: the case {case.name!r} has no gradient")
    for name in ("repeats", "seconds", "tokens"):
        value = getattr(options, name)
        if not min(value if isinstance(value, list) else [value]) > 0:  # also NaN
            raise ValueError(f"--{name} {value}: expected more than 0")
    return [
        Setting(
            case,
            shape,
            tokens,
            frozen=options.frozen_head,
            own_teacher=options.own_teacher,
            dtype=DTYPES[dtype],
            device=torch.device(device),
        )
        for tokens in options.tokens
    ]


def _measure(options: argparse.Namespace, settings: list[Any]) -> int:
    from sdkernels.bench import peers, runner, suite

    wanted = None if options.peers is None else [p.strip() for p in options.peers.split(",")]
    chosen = peers.select(wanted, settings[0].case.name)
    effort = runner.Effort(repeats=options.repeats, seconds=options.seconds)
    jobs = [suite.Job(setting, chosen, effort) for setting in settings]
    return 1 if suite.run_jobs(jobs, _command(options), options.out).failures else 0


def _command(options: argparse.Namespace) -> str:
    """The command that repeats it."""
    words = ["sdkernels", "bench", "--case", options.case, "--shape", options.shape, "--tokens"]
    words += map(str, options.tokens)
    for name in ("peers", "dtype", "device", "repeats", "seconds"):
        value = getattr(options, name)
        words += [] if value is None else [f"--{name}", str(value)]
    words += ["--frozen-head"] if options.frozen_head else []
    words += ["--own-teacher"] if options.own_teacher else []
    return shlex.join(words)


def _lists() -> str:
    from sdkernels.bench import peers
    from sdkernels.bench.cases import CASES
    from sdkernels.bench.shapes import SHAPES
    from sdkernels.cli.text import columns

    shapes = [(s.name, f"D = {s.hidden}, V = {s.vocab} ({s.source})") for s in SHAPES.values()]
    found = [(p.name, f"{p.title}: {', '.join(p.calls)}") for p in peers.load().values()]
    parts = {
        "cases": columns([(case.name, case.title) for case in CASES.values()]),
        "shapes": columns(shapes),
        "peers": columns(found),
    }
    return "\n\n".join(f"{title}\n{body}" for title, body in parts.items())
