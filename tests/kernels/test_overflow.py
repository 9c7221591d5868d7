"""Offsets beyond 2^31 elements, in a process of its own: wrong code dies there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.mutant_kernels import mutated_package

# Rows 2^30 elements apart: the third one starts at element 2^31. Untouched pages cost no memory.
SCRIPT = """
import sys
sys.path.insert(0, sys.argv[2])
import dataclasses, importlib, torch
package = sys.argv[1]
load = lambda name: importlib.import_module(package + "." + name)
device = "cuda" if torch.cuda.is_available() else "cpu"
if device == "cpu":
    from triton.runtime import interpreter
    builder = interpreter.interpreter_builder
    if not (dataclasses.is_dataclass(builder.options) and hasattr(builder.options, "debug")):
        raise SystemExit("this Triton's interpreter has no overflow check")
    builder.options = dataclasses.replace(builder.options, debug=True)
Logits = load("launch").Logits
rows = [torch.randn(3, 64, device=device, dtype=torch.float16) for _ in range(2)]
far = []
for near in rows:
    memory = torch.empty(2**31 + 64, device=device, dtype=torch.float16)
    view = memory.as_strided((3, 64), (2**30, 1))
    view.copy_(near)
    far.append(view)
ids = torch.tensor([[1], [2], [3]], device=device)
results = []
for student, teacher in (rows, far):
    linear = load("linear_statistics").linear_partial_statistics(student, teacher, ids_TK=ids - 1)
    student, teacher = Logits.of(student), Logits.of(teacher)
    sums = load("statistics").partial_statistics(student, teacher, ids)
    stats, numbers = load("merge").merge(
        sums.partials_CFP, vocab=64, ids_CK=ids, chosen_CK=sums.chosen_CK,
        teacher_chosen_CK=sums.teacher_chosen_CK,
    )
    stats |= load("mixture").mixture_statistics(
        student, teacher, numbers, jsd_beta=0.5, entry_clip=0.01
    )
    ones = torch.ones(3, device=device)
    load("gradient").logit_gradient(
        student, teacher, numbers, {name: ones for name in ("plain", "entropy", "jsd",
        "kl_teacher_student", "kl_student_teacher", "clipped_kl_teacher_student")},
        student.raw_CV, ids_CK=ids, ids_coef_CK=torch.ones(3, 1, device=device),
        jsd_beta=0.5, entry_clip=0.01,
    )
    fused = {"linear": linear.partials_CFP, "linear ids": linear.chosen_CK}
    results.append({**stats, **fused, "gradient": student.raw_CV.clone()})
for name, value in results[0].items():
    assert torch.equal(value, results[1][name]), name
print("same bits")
"""


def _run(package: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "ignore", "-c", SCRIPT, package, str(folder)],
        env=dict(os.environ),
        capture_output=True,
        text=True,
        check=False,
    )


def test_rows_beyond_two_to_the_31_elements_are_the_same_to_the_bit(tmp_path: Path) -> None:
    done = _run("sdkernels.kernels", tmp_path)
    assert done.stdout.strip().endswith("same bits"), done.stderr[-2000:]


def test_the_fused_kernel_without_its_copy_is_killed(tmp_path: Path) -> None:
    """Inside a tile its offsets have 32 bits: rows that far apart have to be moved together."""
    old = "adjacent and last < 2**31"
    package = mutated_package(tmp_path, "linear_statistics.py", old, "adjacent")
    assert "same bits" not in _run(package, tmp_path).stdout


@pytest.mark.parametrize(
    ("file", "old"),
    [
        ("statistics.py", "row = (program // parts).to(tl.int64)"),
        ("mixture.py", "row = (program // parts).to(tl.int64)"),
        ("gradient.py", "row = (program // parts).to(tl.int64)"),
    ],
)
def test_a_32_bit_row_offset_is_killed(file: str, old: str, tmp_path: Path) -> None:
    package = mutated_package(tmp_path, file, old, old.removesuffix(".to(tl.int64)"))
    assert "same bits" not in _run(package, tmp_path).stdout
