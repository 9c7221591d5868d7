"""A toy scale and one toy run that several tests read."""

from pathlib import Path
from typing import Any

import pytest

from sdkernels.lab.distill import DistillPlan
from sdkernels.lab.model import Size, make
from sdkernels.lab.pretrain import BasePlan, train_base
from sdkernels.lab.results import write_results
from sdkernels.lab.scales import Scale
from sdkernels.lab.study import run_cells

TOY = Scale(
    "toy",
    base=BasePlan(Size(16, 1, 2), steps=2, batch_tokens=256),
    distill=DistillPlan(steps=1, prompts=2, rollouts=2, lengths=(1,)),
    coverages=(1, 2),
    swept=("grpo", "pull_solution"),
    routed_coverage=2,
    routed=("dasd",),
    one_family_coverages=(2,),
    one_family=("pull_solution",),
    long_lengths=(2,),
    eval_problems=2,
    eval_samples=2,
    default_seeds=1,
)


@pytest.fixture(scope="session")
def toy() -> Scale:
    return TOY


@pytest.fixture(scope="session")
def tiny_model() -> Any:
    """A model that has learnt the form of traces, and little else."""
    plan = BasePlan(Size(32, 2, 2), steps=60, batch_tokens=768, learning_rate=5e-3)
    return train_base(plan)


@pytest.fixture
def blank_model() -> Any:
    return make(Size(16, 2, 2), seed=0).eval()


@pytest.fixture(scope="session")
def toy_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of one seed, with its results."""
    output = tmp_path_factory.mktemp("lab")
    cells = run_cells(TOY, output, workers=1, device="cpu", announce=lambda line: None)
    (output / "printed.txt").write_text(write_results(TOY, output, cells), encoding="utf-8")
    return output
