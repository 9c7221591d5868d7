"""Two processes on the CPU (gloo) against one, under DDP and FSDP2: the same steps, whoever holds
which prompt.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers.ranks import Ranks
from safetensors.torch import load_file

CONFIGS = Path(__file__).parents[2] / "configs" / "accelerate"
FSDP2 = CONFIGS / "fsdp2.yaml"

# Responses follow from the prompt, so that it does not matter which rank samples them; lengths
# differ, so that ranks have different numbers of tokens.
DRIVER = """
import os, signal, sys
from accelerate import DistributedType, FullyShardedDataParallelPlugin
from accelerate.state import AcceleratorState
from torch.distributed.tensor import DTensor
from sdkernels.train import run, trainer
from sdkernels.train.config import SelfDistillConfig
from sdkernels.train.rollout import Sample

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

make_batches = trainer.SelfDistillTrainer.get_batch_samples
def noted(self, *args):
    batches = make_batches(self, *args)
    sharded = any(isinstance(p, DTensor) for p in self.model.parameters())
    rows = [row for batch in batches[0] for row in batch["micro_batch"].rows]
    masked = not any(row.has_tokens for row in rows)
    print(f"[rank {self.args.process_index}] sharded {sharded}, masked {masked}", flush=True)
    return batches
trainer.SelfDistillTrainer.get_batch_samples = noted

# accelerate takes FSDP for a GPU affair and falls back to DDP on CPU; its FSDP2 code itself runs on
# gloo.
make_state = AcceleratorState.__init__
def with_fsdp(self, *args, **kwargs):
    make_state(self, *args, **kwargs)
    if os.environ.get("ACCELERATE_USE_FSDP") == "true":
        self.distributed_type = DistributedType.FSDP
        self.fsdp_plugin = FullyShardedDataParallelPlugin()
AcceleratorState.__init__ = with_fsdp

def run_rank(settings):
    rollout = None if settings.pop("sampled", False) else FixedRollout()
    try:
        run.train(SelfDistillConfig(**settings), run.Parts(rollout=rollout))
    except (RuntimeError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 3
    return 0
"""

Launch = Callable[..., tuple[list[int], str]]


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Ranks]:
    ranks = Ranks(tmp_path_factory.mktemp("ranks"), DRIVER)
    yield ranks
    ranks.close()


@pytest.fixture
def launch(ranks: Ranks) -> Launch:
    return ranks.run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[str, Any]:
    data = tmp_path_factory.mktemp("data") / "sums.jsonl"
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
        "max_steps": 3,  # two steps an epoch, so this crosses into the second
        "learning_rate": 0.05,
        "optim": "sgd",
        "max_grad_norm": 0.0,
        "recipe": "dasd",
        "use_cpu": True,
        "disable_tqdm": True,
        "save_strategy": "no",
        "dump_tokens": 0,
    }


@pytest.fixture
def settings(base: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    return base | {"output_dir": str(tmp_path / "run")}


Result = tuple[list[dict[str, Any]], dict[str, torch.Tensor]]


def result(settings: dict[str, Any]) -> Result:
    folder = Path(settings["output_dir"])
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines], load_file(folder / "final" / "model.safetensors")


def assert_same(ours: Result, theirs: Result) -> None:
    (our_lines, our_weights), (their_lines, their_weights) = ours, theirs
    keys = ("step", "loss", "grad_norm", "num_tokens", "gap", "entropy", "reward", "policy_drift")
    for a, b in zip(our_lines, their_lines, strict=True):
        for key in keys:
            expected = a[key] if a[key] is None else pytest.approx(a[key], rel=5e-5, abs=1e-7)
            assert b[key] == expected, key
    # FSDP2 writes tied embeddings twice.
    tied = their_weights.get("lm_head.weight")
    assert tied is None or torch.equal(tied, their_weights["model.embed_tokens.weight"])
    assert our_weights.keys() == their_weights.keys() - {"lm_head.weight"}
    for name, value in our_weights.items():
        torch.testing.assert_close(their_weights[name], value, rtol=0, atol=3e-6)


METHODS = {
    "token_mean": {},
    "sequence_mean": {"aggregation": "sequence_mean"},
    "ema": {"teacher_model_kind": "ema", "teacher_update_rate": 0.5, "recipe": "sdpo"},
    "live": {"teacher_model_kind": "live", "recipe": "sdpo"},
    "off_policy": {"num_iterations": 2, "recipe": "grpo", "max_steps": 2},
}


@pytest.fixture(scope="module")
def one_process(base, ranks, tmp_path_factory) -> Callable[[str], Result]:
    """Runs of one process that accumulates what two ranks hold, each made once."""
    done: dict[str, Result] = {}

    def get(method: str) -> Result:
        if method not in done:
            folder = str(tmp_path_factory.mktemp(method))
            own = base | METHODS[method] | {"output_dir": folder, "gradient_accumulation_steps": 2}
            status, output = ranks.run(own)
            assert status == [0], output
            done[method] = result(own)
            assert done[method][0][0]["grad_norm"] > 1e-3
        return done[method]

    return get


@pytest.mark.parametrize(
    ("method", "config"),
    [
        ("token_mean", None),
        ("sequence_mean", None),
        ("off_policy", None),
        ("token_mean", FSDP2),
        ("ema", FSDP2),
        ("live", FSDP2),
        ("off_policy", FSDP2),
    ],
    ids=lambda value: "ddp" if value is None else getattr(value, "stem", value),
)
def test_two_processes_equal_one(settings, launch, one_process, method, config):
    status, output = launch(settings | METHODS[method], 2, config)
    assert status == [0, 0], output
    assert f"[rank 1] sharded {config is not None}" in output
    assert_same(one_process(method), result(settings))  # lines written once, not once a rank


@pytest.mark.parametrize("config", [None, FSDP2], ids=["ddp", "fsdp2"])
def test_a_rank_without_tokens_keeps_up(settings, launch, tmp_path, config):
    """A group without a success has no sibling solution, so its rank has nothing to train on."""
    own = {"context": "sibling_solution", "recipe": "sdpo", "per_device_train_batch_size": 1}
    data = tmp_path / "data.jsonl"
    # Five responses in a row answer 0 to 4, so 3 is always among them, and 99 never.
    rows = [{"prompt": f"{i}+{i}?", "answer": "99" if i % 2 else "3"} for i in range(4)]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own |= {"dataset": str(data), "num_generations": 5}
    status, output = launch(settings | own, 2, config)
    assert status == [0, 0], output
    masked = [re.findall(rf"rank {rank}. sharded \w+, masked (\w+)", output) for rank in (0, 1)]
    assert any(a != b for a, b in zip(*masked, strict=True)), masked
    assert len(result(settings)[0]) == 3


def test_ranks_sample_responses_of_any_length_together(settings, launch):
    """Sharded weights are gathered at every token, so no rank may stop sampling before the rest."""
    status, output = launch(settings | {"sampled": True, "max_steps": 1}, 2, FSDP2)
    assert status == [0, 0], output
    lines, _ = result(settings)
    assert lines[0]["completion_length"] > 1


@pytest.mark.parametrize("config", [None, FSDP2], ids=["ddp", "fsdp2"])
def test_a_checkpoint_of_two_processes_is_resumed_by_one(settings, launch, tmp_path, config):
    """With AdamW, whose state has to come along, and in the middle of a batch of rollouts."""
    own = {
        "recipe": "sdpo",
        "recipe_args": {"is_clip": 1.2},
        "num_iterations": 2,
        "optim": "adamw_torch",
        "learning_rate": 3e-3,
        "save_strategy": "steps",
        "save_steps": 1,
        "save_total_limit": None,
        "max_steps": 3,
    }
    status, output = launch(settings | own, 2, config)
    assert status == [0, 0], output
    whole = result(settings)
    checkpoint = Path(settings["output_dir"]) / "checkpoint-1"
    assert len(list(checkpoint.glob("rollouts-*.pt"))) == 2
    alone = settings | own | {"output_dir": str(tmp_path / "one"), "gradient_accumulation_steps": 2}
    status, output = launch(alone | {"resume_from_checkpoint": str(checkpoint)})
    assert status == [0], output
    whole_lines, whole_weights = whole
    assert_same(result(alone), (whole_lines[1:], whole_weights))


def test_resumed_inside_a_later_epoch(settings, launch, tmp_path):
    """The order of the prompts is that of the epoch, on every rank."""
    own = {"save_strategy": "steps", "save_steps": 1, "save_total_limit": None, "max_steps": 4}
    status, output = launch(settings | own, 2)
    assert status == [0, 0], output
    lines, weights = result(settings)
    checkpoint = Path(settings["output_dir"]) / "checkpoint-3"
    again = settings | own | {"output_dir": str(tmp_path / "again")}
    status, output = launch(again | {"resume_from_checkpoint": str(checkpoint)}, 2)
    assert status == [0, 0], output
    assert_same((lines[3:], weights), result(again))


def test_a_signal_to_one_rank_stops_all_after_the_step(settings, launch):
    settings = settings | {"max_steps": 6}
    status, output = launch(settings, 2, STOP_AT="2:1")
    assert status == [3, 3]
    assert output.count("Interrupted: stopped after step 2 of 6") == 2, output
    folder = Path(settings["output_dir"])
    assert [path.name for path in folder.glob("checkpoint-*")] == ["checkpoint-2"]
    status, output = launch(settings | {"resume_from_checkpoint": "last"}, 2)
    assert status == [0, 0], output
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("launcher", ["torchrun", "accelerate"])
def test_the_launchers_themselves(settings, tmp_path, launcher):
    """`sdkernels train` as its users start it on two processes."""
    small = ["--cpu", "--num_processes", "2", "--mixed_precision", "no"]
    config = str(CONFIGS / "multi_gpu.yaml")
    runners = {
        "torchrun": ["torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
        "accelerate": ["accelerate.commands.launch", "--config_file", config, *small],
    }
    flags = [f"--{name}={value}" for name, value in (settings | {"max_steps": 1}).items()]
    command = [sys.executable, "-m", *runners[launcher], "-m", "sdkernels.cli", "train", *flags]
    done = subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert done.stdout.count("report: ") == 1  # rank 0 only
    assert len(result(settings)[0]) == 1


@pytest.mark.parametrize("name", ["single_gpu", "multi_gpu", "fsdp2", "multi_node"])
def test_shipped_launch_configurations(name):
    from accelerate.commands.config.config_args import load_config_from_file

    config = load_config_from_file(str(CONFIGS / f"{name}.yaml"))
    assert config.num_processes == {"single_gpu": 1, "multi_node": 16}.get(name, 8)
    kind = {"single_gpu": "NO", "fsdp2": "FSDP"}.get(name, "MULTI_GPU")
    assert config.distributed_type.value == kind
    assert config.mixed_precision == "bf16"
