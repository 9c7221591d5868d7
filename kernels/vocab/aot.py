"""Compile every kernel in every shipped configuration for every target, on any machine, no GPU.

    python -m sdkernels.kernels.aot                     all targets; prints the table
    python -m sdkernels.kernels.aot sm_90 gfx942        some
    python -m sdkernels.kernels.aot --write             also store it in resources.json

Registers and stack (spills) come from the `cuobjdump` in Triton's wheel, and from the assembly for
AMD; shared memory from Triton. Of the kernels without a loop the instructions a column are counted,
in the disassembly (`nvdisasm`, also in the wheel): beside the bytes that a column moves they say
what bounds it. A row that spills, or that needs more shared memory than its target has, is an
error, and so is one that needs more registers, shared memory or instructions than the stored table
says (under the Triton version that the table was made with). Exit status 1 on any error.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from .aot_cases import SHARED_LIMITS, TARGETS, Case, cases

TABLE = Path(__file__).with_name("resources.json")


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel needs: registers a thread, bytes of stack (or spilled registers on
    AMD), bytes of shared memory a block; instructions that one lane spends on one column of the
    vocabulary (0: the kernel has a loop, so counting says nothing).
    """

    registers: int
    spills: int
    shared_bytes: int
    matrix_instruction: str = ""
    instructions: float = 0.0


@dataclass
class Report:
    """Resources by `case/target`, and everything that is wrong."""

    rows: dict[str, Resources] = field(default_factory=dict)
    errors: list[str] = field(default_factory=list)


def compiled(case: Case, target: str) -> Any:
    """Triton's compiled kernel of `case` for `target`."""
    import importlib

    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel = getattr(importlib.import_module(f".{case.module}", __package__), case.kernel)
    names = list(kernel.arg_names)
    signature = {name: case.signature.get(name, "constexpr") for name in names}
    constants = {
        (names.index(name),): case.constants.get(name)
        for name in names
        if signature[name] == "constexpr"
    }
    # What a launch on usual shapes gets: pointers, strides and the vocabulary divisible by 16.
    divisible = ("stride",) if case.odd_vocab else ("stride", "vocab")
    attributes = {
        (index,): [["tt.divisibility", 16]]
        for index, (name, parameter) in enumerate(zip(names, kernel.params, strict=True))
        if not parameter.do_not_specialize_on_alignment
        and (signature[name].startswith("*") or name.endswith(divisible))
    }
    where = (
        GPUTarget("hip", target, 64)
        if target.startswith("gfx")
        else GPUTarget("cuda", int(target.removeprefix("sm_")), 32)
    )
    return triton.compile(
        ASTSource(kernel, signature, constants, attributes),
        target=where,
        options={
            "num_warps": case.num_warps,
            "num_stages": case.num_stages,
            "enable_fp_fusion": False,
        },
    )


def resources(case: Case, target: str) -> Resources:
    """Compile, and read the result."""
    binary = compiled(case, target)
    if target.startswith("gfx"):
        text = binary.asm["amdgcn"]
        return Resources(
            _number(r"\.vgpr_count:\s+(\d+)", text),
            _number(r"\.vgpr_spill_count:\s+(\d+)", text)
            + _number(r"\.sgpr_spill_count:\s+(\d+)", text),
            binary.metadata.shared,
            "mfma" if "v_mfma" in text else "",
            _per_column(case, _AMD_INSTRUCTION.findall(text), lanes=64),
        )
    ptx = binary.asm["ptx"]
    usage = _tool("cuobjdump", "--dump-resource-usage", binary.asm["cubin"])
    code = _tool("nvdisasm", "-c", binary.asm["cubin"]) if case.columns else ""
    matrix = "wgmma" if "wgmma.mma_async" in ptx else "tcgen05" if "tcgen05.mma" in ptx else ""
    return Resources(
        _number(r"REG:(\d+)", usage),
        _number(r"STACK:(\d+)", usage) + _number(r"LOCAL:(\d+)", usage),
        binary.metadata.shared,
        matrix or ("mma" if "mma.sync" in ptx else ""),
        _per_column(case, _NVIDIA_INSTRUCTION.findall(code), lanes=32),
    )


# A line of nvdisasm is `/*0a30*/ @!P0 FADD R1, ...`; of AMD's assembly, `v_add_f32_e32 v1, ...`.
_NVIDIA_INSTRUCTION = re.compile(r"^\s+/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\d\s+)?(?!NOP)[A-Z]", re.M)
_AMD_INSTRUCTION = re.compile(r"^\t(?:v|s|ds|global|buffer|flat)_(?!nop|endpgm)", re.M)


def _per_column(case: Case, instructions: list[str], lanes: int) -> float:
    if not case.columns:
        return 0.0
    return round(len(instructions) * case.num_warps * lanes / case.columns, 1)


def _tool(name: str, option: str, cubin: bytes) -> str:
    """What a tool of Triton's wheel prints about a cubin."""
    import triton

    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "kernel.cubin"
        path.write_bytes(cubin)
        done = subprocess.run([tool, option, path], capture_output=True, text=True, check=True)
    return done.stdout


def _number(pattern: str, text: str) -> int:
    found = re.search(pattern, text)
    if found is None:
        raise ValueError(f"no {pattern!r} in the compiler's output: {text[:500]}")
    return int(found.group(1))


# --- judging ------------------------------------------------------------------------------------


def compile_one(job: tuple[Case, str]) -> tuple[str, Resources | str]:
    """`case/target`, and its resources or what the compiler said."""
    case, target = job
    key = f"{case.name}/{target}"
    try:
        return key, resources(case, target)
    except Exception as error:  # any compiler failure is a row of the report
        return key, f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"


def run(targets: tuple[str, ...], workers: int = 2) -> Report:
    """Compile all cases for `targets` and judge them."""
    jobs = [(case, target) for case in cases() for target in targets if target in case.targets]
    report = Report()
    stored = _stored()
    with ProcessPoolExecutor(workers) as pool:
        for key, found in pool.map(compile_one, jobs):
            if isinstance(found, str):
                report.errors.append(f"{key}: does not compile: {found}")
                continue
            report.rows[key] = found
            report.errors += judge(key, found, stored.get(key))
    return report


def judge(key: str, found: Resources, before: Resources | None) -> list[str]:
    """What is wrong with a row, given the stored one."""
    limit = SHARED_LIMITS[key.rsplit("/", 1)[1]]
    errors = []
    if found.spills:
        errors.append(f"{key}: spills {found.spills}")
    if found.shared_bytes > limit:
        errors.append(f"{key}: {found.shared_bytes} bytes of shared memory, the limit is {limit}")
    if before is not None:
        if found.matrix_instruction != before.matrix_instruction:
            errors.append(
                f"{key}: uses {found.matrix_instruction or 'no matrix instruction'}, the stored "
                f"table says {before.matrix_instruction or 'none'}"
            )
        for name in ("registers", "shared_bytes", "instructions"):
            now, then = getattr(found, name), getattr(before, name)
            if now > then:
                errors.append(f"{key}: {name} rose from {then} to {now}")
    return errors


def _stored() -> dict[str, Resources]:
    """The stored table, if it was made with the Triton that is installed."""
    import triton

    if not TABLE.exists():
        return {}
    table = json.loads(TABLE.read_text())
    if table["triton"] != triton.__version__:
        return {}
    return {key: Resources(*row) for key, row in table["rows"].items()}


def _print(report: Report) -> None:
    print(
        f"{'kernel / configuration / target':58}{'registers':>10}{'spills':>8}{'shared':>9}"
        f"{'a column':>10}  matrix"
    )
    for key, row in report.rows.items():
        instructions = f"{row.instructions:.1f}" if row.instructions else "-"
        print(
            f"{key:58}{row.registers:10}{row.spills:8}{row.shared_bytes:9}"
            f"{instructions:>10}  {row.matrix_instruction or '-'}"
        )
    for error in report.errors:
        print(f"ERROR {error}", file=sys.stderr)
    print(f"{len(report.rows)} compiled, {len(report.errors)} errors")


def main(arguments: list[str] | None = None) -> int:
    """Command line; returns the exit status."""
    import triton

    parser = argparse.ArgumentParser(prog="python -m sdkernels.kernels.aot")
    parser.add_argument("targets", nargs="*", help=f"of {', '.join(TARGETS)}; default: all")
    parser.add_argument("--write", action="store_true", help="store the table in resources.json")
    parser.add_argument("--workers", type=int, default=2)
    options = parser.parse_args(arguments)
    unknown = [target for target in options.targets if target not in TARGETS]
    if unknown:
        parser.error(f"unknown targets {unknown}; accepted: {', '.join(TARGETS)}")
    if options.write:
        TABLE.unlink(missing_ok=True)
    report = run(tuple(options.targets) or TARGETS, options.workers)
    _print(report)
    if options.write:
        rows = {key: list(asdict(row).values()) for key, row in sorted(report.rows.items())}
        lines = ",\n".join(f"  {json.dumps(key)}: {json.dumps(row)}" for key, row in rows.items())
        TABLE.write_text(f'{{"triton": "{triton.__version__}", "rows": {{\n{lines}\n}}}}\n')
    return 1 if report.errors else 0


if __name__ == "__main__":
    sys.exit(main())
