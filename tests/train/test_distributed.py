"""Two processes on the CPU (gloo) against one: the same step, whoever holds which prompt."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

# Responses follow from the prompt, so that it does not matter which rank samples them; lengths
# differ, so that ranks have different numbers of tokens.
DRIVER = """
import faulthandler, json, os, signal, sys
faulthandler.dump_traceback_later(300, exit=True)  # a rank that waits forever says where
import torch
torch.set_num_threads(1)
from sdkernels.train.config import SelfDistillConfig
from sdkernels.train.rollout import Sample
from sdkernels.train.run import Parts, train

class FixedRollout:
    def __init__(self):
        self.calls = 0
    def generate(self, prompts_ids, num_generations, sampling, *, seed):
        self.calls += 1
        if os.environ.get("STOP_AT") == f"{self.calls}:{os.environ.get('RANK')}":
            os.kill(os.getpid(), signal.SIGTERM)
        groups = []
        for ids in prompts_ids:
            group = []
            for i in range(num_generations):
                length = 3 + (sum(ids) + i) % 9
                tokens = [3 + (7 * sum(ids) + 11 * i + 5 * j) % 250 for j in range(length)]
                group.append(Sample(tokens, f"Answer: {(sum(ids) + i) % 5}", i % 2 == 0))
            groups.append(group)
        return groups

config = SelfDistillConfig(**json.loads(sys.argv[1]))
try:
    train(config, Parts(rollout=FixedRollout()))
except RuntimeError as error:
    print(f"{type(error).__name__}: {error}", file=sys.stderr)
    sys.exit(3)
"""


@pytest.fixture
def settings(tmp_path: Path, model_folder: Path) -> dict[str, Any]:
    data = tmp_path / "sums.jsonl"
    rows = [
        {"prompt": f"{i}+{i}?", "answer": f"{i % 5}", "solution": f"It is {i}. " * (1 + i % 3)}
        for i in range(8)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model_name_or_path": str(model_folder),
        "dataset": str(data),
        "per_device_train_batch_size": 2,
        "num_generations": 3,
        "max_completion_length": 16,
        "max_steps": 2,
        "learning_rate": 0.05,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "recipe": "dasd",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "dump_tokens": 0,
    }


def launch(settings: dict[str, Any], processes: int, **environment: str) -> tuple[int, str]:
    """Run with plain python or torchrun; exit status and output of all ranks."""
    script = Path(settings["output_dir"]).with_suffix(".py")
    script.write_text(DRIVER)
    runner = [sys.executable]
    if processes > 1:
        count = ["--standalone", "--nproc_per_node", str(processes)]
        runner += ["-m", "torch.distributed.run", *count]
    done = subprocess.run(
        [*runner, str(script), json.dumps(settings)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"} | environment,
        timeout=400,
        check=False,
    )
    return done.returncode, done.stdout


def result(folder: str) -> tuple[list[dict[str, Any]], dict[str, torch.Tensor]]:
    lines = (Path(folder) / "metrics.jsonl").read_text().splitlines()
    weights = load_file(str(Path(folder) / "final" / "model.safetensors"))
    return [json.loads(line) for line in lines], weights


@pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])
def test_two_processes_equal_one(settings, tmp_path, aggregation):
    settings = settings | {"aggregation": aggregation}
    one = settings | {"output_dir": str(tmp_path / "one"), "gradient_accumulation_steps": 2}
    two = settings | {"output_dir": str(tmp_path / "two")}
    for own, processes in ((one, 1), (two, 2)):
        status, output = launch(own, processes)
        assert status == 0, output
    (ours, our_weights), (theirs, their_weights) = (result(s["output_dir"]) for s in (one, two))
    assert [line["step"] for line in theirs] == [1, 2]  # written once, not once a rank
    keys = ("loss", "grad_norm", "num_tokens", "gap", "entropy", "reward", "push_share")
    for a, b in zip(ours, theirs, strict=True):
        for key in keys:
            assert b[key] == pytest.approx(a[key], rel=5e-5, abs=1e-7), key
    assert ours[0]["grad_norm"] > 1e-3
    for name, value in our_weights.items():
        torch.testing.assert_close(their_weights[name], value, rtol=0, atol=3e-6)


def test_a_signal_to_one_rank_stops_all_after_the_step(settings, tmp_path):
    settings = settings | {"output_dir": str(tmp_path / "run"), "max_steps": 6}
    status, output = launch(settings, 2, STOP_AT="2:1")
    assert status != 0
    assert output.count("Interrupted: stopped after step 2 of 6") == 2, output
    names = [path.name for path in (tmp_path / "run").glob("checkpoint-*")]
    assert names == ["checkpoint-2"]
    status, output = launch(settings | {"resume_from_checkpoint": "last"}, 2)
    assert status == 0, output
    lines = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]
