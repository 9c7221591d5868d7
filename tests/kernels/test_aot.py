"""Compile-only checks, in a process without the interpreter: no device is needed, none is used."""

import json
import os
import subprocess
import sys

import pytest

from sdkernels.kernels import aot, aot_cases
from sdkernels.kernels.configs import MOST_IDS


def _run(*arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    command = [sys.executable, "-m", "sdkernels.kernels.aot", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_configuration_compiles_for_every_target_within_its_stored_resources() -> None:
    done = _run()
    assert done.returncode == 0, done.stderr
    expected = sum(len(case.targets) for case in aot_cases.cases())
    assert done.stdout.splitlines()[-1] == f"{expected} compiled, 0 errors"


def test_every_kernel_has_a_case_for_every_shipped_tile() -> None:
    names = {case.name for case in aot_cases.cases()}
    for config in aot_cases.STATISTICS_CONFIGS:
        assert f"statistics/{config.tile}/fp32/everything" in names
    for config in aot_cases.ELEMENTWISE_CONFIGS:
        assert f"mixture/{config.tile}/fp32/everything" in names
        assert f"gradient/{config.tile}/fp32/fp32/everything" in names


@pytest.mark.parametrize("target", aot.TARGETS)
@pytest.mark.parametrize("ids", [1, 2, MOST_IDS])
def test_the_fused_kernel_is_compiled_for_the_fewest_and_the_most_ids(
    target: str, ids: int
) -> None:
    cases = [case for case in aot_cases.cases() if target in case.targets]
    assert any(case.constants.get("NUM_IDS") == ids and "linear" in case.name for case in cases)


@pytest.mark.parametrize(
    ("found", "complaint"),
    [
        (aot.Resources(64, 8, 0), "spills 8"),
        (aot.Resources(64, 0, 100 * 1024), "limit is 101376"),
        (aot.Resources(65, 0, 0), "registers rose from 64 to 65"),
        (aot.Resources(64, 0, 0, "mma"), "stored table says none"),
    ],
)
def test_a_regression_is_an_error(found: aot.Resources, complaint: str) -> None:
    before = aot.Resources(64, 0, 0)
    assert aot.judge("kernel/sm_86", before, before) == []
    assert complaint in " ".join(aot.judge("kernel/sm_86", found, before))


def test_a_kernel_that_does_not_compile_is_an_error() -> None:
    broken = aot_cases.Case("broken", "statistics", "statistics_kernel", {}, {}, 1)
    key, found = aot.compile_one((broken, "sm_90"))
    assert key == "broken/sm_90"
    assert isinstance(found, str)


def test_an_unknown_target_is_refused_with_the_accepted_ones() -> None:
    done = _run("sm_91")
    assert done.returncode == 2
    assert "sm_90" in done.stderr


@pytest.mark.parametrize(
    ("target", "instruction"),
    [("sm_80", "mma"), ("sm_90", "wgmma"), ("sm_100", "tcgen05"), ("gfx942", "mfma")],
)
def test_the_fused_linear_kernel_uses_the_matrix_instruction_of_its_target(
    target: str, instruction: str
) -> None:
    rows = json.loads(aot.TABLE.read_text())["rows"]
    used = {
        row[3]
        for key, row in rows.items()
        if key.startswith("linear/") and key.endswith(target) and "/fp32/" not in key
    }
    assert used == {instruction}


VECTORS = """
from sdkernels.kernels import aot, aot_cases
from sdkernels.kernels.configs import MOST_IDS
from sdkernels.kernels.configs import ELEMENTWISE_CONFIGS, STATISTICS_CONFIGS
statistics = aot_cases._statistics(STATISTICS_CONFIGS[-1], "fp32", "pair")
gradient = aot_cases._gradient(ELEMENTWISE_CONFIGS[-1], "fp32", "bf16", "kl_teacher_student")
for case in (statistics, gradient):
    for odd in (case, aot_cases._odd(case, padded=True), aot_cases._odd(case, padded=False)):
        ptx = aot.compiled(odd, "sm_90").asm["ptx"]
        vectors = [name for name in ("ld.global.v4", "st.global.v4") if name in ptx]
        print(",".join(vectors) or "none")
"""


def test_an_odd_vocabulary_in_a_padded_slab_is_read_and_written_in_vectors() -> None:
    """And would not be without the padding, which is what the padding is for."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    done = subprocess.run(
        [sys.executable, "-c", VECTORS], env=environment, capture_output=True, text=True, check=True
    )
    reads, writes = "ld.global.v4", "ld.global.v4,st.global.v4"
    assert done.stdout.split() == [reads, reads, "none", writes, writes, "none"]
