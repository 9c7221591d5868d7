"""Killed, stopped and interrupted runs, in processes of their own.

Each test compares the final weights with those of a run that nobody disturbed, bit for bit.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

STEPS = 5

# Imports once, then forks a child for every run: a process of its own without ten seconds of
# imports.
# A request is the settings, a piece of Python that may break something, and a file for the output.
ZYGOTE = """
import json, os, signal, sys, time, traceback
import torch
torch.set_num_threads(1)
from sdkernels.train import checkpoint, run, trainer
from sdkernels.train.config import SelfDistillConfig

def die():
    os.kill(os.getpid(), signal.SIGKILL)

def before(owner, name, action):
    original = getattr(owner, name)
    def wrapper(self, *args, **kwargs):
        action(self, *args)
        return original(self, *args, **kwargs)
    setattr(owner, name, wrapper)

def after(owner, name, action):
    original = getattr(owner, name)
    def wrapper(self, *args, **kwargs):
        result = original(self, *args, **kwargs)
        action(self, *args)
        return result
    setattr(owner, name, wrapper)

def child(settings, fault):
    exec(fault, globals())
    try:
        run.train(SelfDistillConfig(**settings))
    except (RuntimeError, ValueError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 128 + getattr(error, "signal_number", -127)
    return 0

for line in sys.stdin:
    settings, fault, log = json.loads(line)
    pid = os.fork()
    if pid == 0:
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(file, 1)
        os.dup2(file, 2)
        status = 1
        try:
            status = child(settings, fault)
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
    print(pid, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), flush=True)
"""

T = "trainer.SelfDistillTrainer"


class Zygote:
    """Starts runs in forked processes."""

    def __init__(self, folder: Path) -> None:
        self.log = folder / "output.log"
        self.process = subprocess.Popen(
            [sys.executable, "-c", ZYGOTE],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )

    def launch(self, settings: dict[str, Any], fault: str = "") -> int:
        """Start a run; its process id."""
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps([settings, fault, str(self.log)]) + "\n")
        self.process.stdin.flush()
        return int(self._read())

    def finish(self) -> tuple[int, str]:
        """Wait for the run; its exit status (negative: killed by that signal) and its output."""
        return int(self._read()), self.log.read_text()

    def run(self, settings: dict[str, Any], fault: str = "") -> tuple[int, str]:
        self.launch(settings, fault)
        return self.finish()

    def _read(self) -> str:
        assert self.process.stdout is not None
        return self.process.stdout.readline()


@pytest.fixture(scope="module")
def zygote(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Zygote]:
    zygote = Zygote(tmp_path_factory.mktemp("zygote"))
    yield zygote
    zygote.process.kill()
    zygote.process.wait()


@pytest.fixture
def run(zygote: Zygote) -> Callable[..., tuple[int, str]]:
    return zygote.run


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory, model_folder: Path) -> dict[str, Any]:
    data = tmp_path_factory.mktemp("data") / "sums.jsonl"
    rows = [
        {"prompt": f"{i}+{i + 2}?", "answer": f"{2 * i + 2}", "solution": f"It is {2 * i + 2}."}
        for i in range(5)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {
        "model_name_or_path": str(model_folder),
        "dataset": str(data),
        "per_device_train_batch_size": 1,
        "gradient_accumulation_steps": 2,
        "num_generations": 2,
        "max_completion_length": 6,
        "max_steps": STEPS,  # 5 prompts make 3 steps an epoch, so this crosses into the second
        "save_steps": 1,
        "save_total_limit": 2,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "linear",
        "recipe": "sdft",
        "teacher_model_kind": "ema",
        "teacher_update_rate": 0.3,
        "dump_tokens": 1,
        "use_cpu": True,
        "disable_tqdm": True,
        "seed": 11,
    }


@pytest.fixture
def settings(base: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    return base | {"output_dir": str(tmp_path / "run")}


def without(settings: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if key != name}


def final_weights(settings: dict[str, Any]) -> dict[str, torch.Tensor]:
    return load_file(str(Path(settings["output_dir"]) / "final" / "model.safetensors"))


def steps_logged(settings: dict[str, Any]) -> list[int]:
    file = Path(settings["output_dir"]) / "metrics.jsonl"
    return [json.loads(line)["step"] for line in file.read_text().splitlines()]


def checkpoints(settings: dict[str, Any]) -> list[str]:
    return sorted(path.name for path in Path(settings["output_dir"]).glob("checkpoint-*"))


Undisturbed = tuple[dict[str, torch.Tensor], list[dict[str, Any]]]


@pytest.fixture(scope="module")
def undisturbed(
    base: dict[str, Any], zygote: Zygote, tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    """Final weights and metrics of a run that nobody disturbed."""
    folder = tmp_path_factory.mktemp("undisturbed")
    own = base | {"output_dir": str(folder)}
    status, output = zygote.run(own)
    assert status == 0, output
    losses = [
        {key: json.loads(line)[key] for key in ("step", "loss", "gap", "grad_norm")}
        for line in (folder / "metrics.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in losses] == [1, 2, 3, 4, 5]
    return final_weights(own), losses


def assert_same_end(settings: dict[str, Any], undisturbed: Undisturbed) -> None:
    weights, losses = undisturbed
    mine = final_weights(settings)
    assert mine.keys() == weights.keys()
    for name, value in weights.items():
        assert torch.equal(mine[name], value), name
    lines = (Path(settings["output_dir"]) / "metrics.jsonl").read_text().splitlines()
    again = [{key: json.loads(line)[key] for key in losses[0]} for line in lines]
    assert again == losses


KILLS = {
    # Second micro-batch of the fourth step: gradients half there, rollouts done.
    "mid_step": f"""
before({T}, "training_step", lambda self, *a: die()
       if self.state.global_step == 3 and self.accelerator.gradient_state.sync_gradients else None)
""",
    # The student is written, optimiser and marker are not.
    "mid_checkpoint": f"""
before({T}, "_save_optimizer_and_scheduler", lambda self, *a: die()
       if self.state.global_step == 3 else None)
""",
    # Everything is written but the marker.
    "before_marker": """
original = checkpoint.mark_complete
checkpoint.mark_complete = lambda folder, step: die() if step == 4 else original(folder, step)
""",
    # Between the line of metrics.jsonl and the checkpoint of the same step.
    "after_metrics": f"""
before({T}, "_save_checkpoint", lambda self, *a: die() if self.state.global_step == 2 else None)
""",
}


@pytest.mark.parametrize("kind", KILLS)
def test_sigkill_and_resume_give_the_same_weights(run, settings, undisturbed, kind):
    status, _ = run(settings, KILLS[kind])
    assert status == -signal.SIGKILL
    assert not (Path(settings["output_dir"]) / "final").exists()
    status, output = run(settings | {"resume_from_checkpoint": "last"})
    assert status == 0, output
    if kind in ("mid_checkpoint", "before_marker"):
        assert "is incomplete (its writing was cut short): removed" in output
    assert_same_end(settings, undisturbed)
    assert checkpoints(settings) == ["checkpoint-4", "checkpoint-5"]


@pytest.mark.parametrize("teacher", ["frozen", "snapshot"])
def test_other_teachers_resume_too(run, settings, tmp_path, teacher):
    own_settings = {"frozen": {}, "snapshot": {"teacher_sync_steps": 2}}[teacher]
    settings = without(settings, "teacher_update_rate") | {"teacher_model_kind": teacher}
    settings |= own_settings
    own = settings | {"output_dir": str(tmp_path / "undisturbed")}
    assert run(own)[0] == 0
    assert run(settings, KILLS["mid_step"])[0] == -signal.SIGKILL
    status, output = run(settings | {"resume_from_checkpoint": "last"})
    assert status == 0, output
    weights = final_weights(own)
    assert all(torch.equal(weights[name], value) for name, value in final_weights(settings).items())


def test_dropout_resumes_bit_for_bit(run, settings, tmp_path, model_folder):
    """Global random numbers are part of a checkpoint, and sampling does not use them up."""
    settings = settings | {"disable_dropout": False}
    fault = """
import sdkernels.train.run as run_module
loaded = run_module.load_model
def with_dropout(*args, **kwargs):
    model, tokenizer = loaded(*args, **kwargs)
    for layer in model.model.layers:
        layer.self_attn.attention_dropout = 0.3
    return model, tokenizer
run_module.load_model = with_dropout
"""
    own = settings | {"output_dir": str(tmp_path / "undisturbed")}
    assert run(own, fault)[0] == 0
    assert run(settings, fault + KILLS["mid_step"])[0] == -signal.SIGKILL
    status, output = run(settings | {"resume_from_checkpoint": "last"}, fault)
    assert status == 0, output
    weights = final_weights(own)
    assert all(torch.equal(weights[name], value) for name, value in final_weights(settings).items())


# --- Ctrl-C ---------------------------------------------------------------------------------------

# Sends the signal to itself in the middle of a rollout of step 3, then sampling goes on slowly.
DURING_ROLLOUT = f"""
from sdkernels.train.rollout import TransformersRollout
def interrupt(self, *args):
    if current.state.global_step == 2 and not current.stop.requested:
        os.kill(os.getpid(), signal.SIGNAL)
current = None
def remember(self, *args):
    global current
    current = self
after({T}, "__init__", remember)
before(TransformersRollout, "_interruptible", interrupt)
"""
# At the end of the second step, outside any place that asks.
IN_BACKWARD = f"""
after({T}, "training_step", lambda self, *a: os.kill(os.getpid(), signal.SIGNAL)
      if self.state.global_step == 1 and self.accelerator.gradient_state.sync_gradients else None)
"""


@pytest.mark.parametrize("where", [DURING_ROLLOUT, IN_BACKWARD], ids=["rollout", "backward"])
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_signal_leaves_a_resumable_checkpoint(run, settings, undisturbed, where, name):
    settings = settings | {"save_strategy": "no"}  # so that the only checkpoint is the signal's
    status, output = run(settings, where.replace("SIGNAL", name))
    assert status == 128 + getattr(signal, name), output
    assert f"{name}: saving a checkpoint, then stopping" in output
    assert "Interrupted: stopped after step 2 of 5. Resume from checkpoint-2: " in output
    assert "sdkernels train --config" in output
    assert checkpoints(settings) == ["checkpoint-2"]
    status, output = run(settings | {"resume_from_checkpoint": "last"})
    assert status == 0, output
    assert_same_end(settings, undisturbed)


def test_a_second_signal_stops_at_once(run, settings):
    twice = DURING_ROLLOUT.replace(
        "os.kill(os.getpid(), signal.SIGNAL)",
        "os.kill(os.getpid(), signal.SIGINT); os.kill(os.getpid(), signal.SIGINT)",
    )
    status, output = run(settings | {"save_strategy": "no"}, twice)
    assert status == 1
    assert "KeyboardInterrupt" in output
    assert checkpoints(settings) == []


def test_a_signal_before_the_first_step(run, settings):
    early = DURING_ROLLOUT.replace("global_step == 2", "global_step == 0")
    status, output = run(settings, early.replace("SIGNAL", "SIGINT"))
    assert status == 128 + signal.SIGINT
    assert "stopped before the first step was done: start again with the same command" in output
    assert checkpoints(settings) == []
    assert run(settings)[0] == 0  # and nothing is in the way of that


def test_ctrl_c_from_outside(zygote, settings):
    """The real thing: a signal from another process at a time that nobody chose."""
    pid = zygote.launch(settings | {"max_steps": 400, "save_strategy": "no"})
    metrics = Path(settings["output_dir"]) / "metrics.jsonl"
    deadline = time.monotonic() + 120
    while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    os.kill(pid, signal.SIGINT)
    status, output = zygote.finish()
    assert status == 128 + signal.SIGINT, output
    (name,) = checkpoints(settings)
    assert steps_logged(settings)[-1] == int(name.split("-")[1])


# --- a disk that fills ----------------------------------------------------------------------------

DISK_FULL = """
import errno
def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")
"""
FULL_AT = {
    "optimizer": f"""
def maybe(self, *args):
    if self.state.global_step == 3:
        full()
before({T}, "_save_optimizer_and_scheduler", maybe)
""",
    "torch_writer": f"""
def maybe(self, *args):
    if self.state.global_step == 3:
        try:
            full()
        except OSError:
            raise RuntimeError("PytorchStreamWriter failed writing file data/0: file write failed")
before({T}, "_save_optimizer_and_scheduler", maybe)
""",
    "teacher": """
original = checkpoint.save_teacher
checkpoint.save_teacher = lambda folder, state: (
    full() if "-3" in folder.name else original(folder, state)
)
""",
    "marker": """
original = checkpoint.mark_complete
checkpoint.mark_complete = lambda folder, step: full() if step == 3 else original(folder, step)
""",
}


@pytest.mark.parametrize("place", FULL_AT)
def test_a_full_disk_keeps_the_earlier_checkpoint(run, settings, undisturbed, place):
    status, output = run(settings, DISK_FULL + FULL_AT[place])
    assert status == 1, output
    assert "CheckpointError: could not save" in output
    assert "checkpoint-3: the disk is full; the partial folder was removed" in output
    assert "Resume from checkpoint-2: sdkernels train --config" in output
    assert checkpoints(settings) == ["checkpoint-1", "checkpoint-2"]
    status, output = run(settings | {"resume_from_checkpoint": "last"})
    assert status == 0, output
    assert_same_end(settings, undisturbed)


# --- refusing to write over a run -----------------------------------------------------------------


def test_a_folder_with_a_run_is_not_overwritten_by_accident(run, settings):
    assert run(settings | {"max_steps": 2})[0] == 0
    status, output = run(settings | {"max_steps": 2})
    assert status == 1
    assert "already holds a run of 2 steps; resume it with resume_from_checkpoint=last" in output
    assert run(settings | {"max_steps": 1, "overwrite_output_dir": True})[0] == 0
    assert steps_logged(settings) == [1]
    assert checkpoints(settings) == ["checkpoint-1"]


def test_a_frozen_teacher_from_other_weights_is_refused(run, settings, tmp_path):
    settings = without(settings, "teacher_update_rate") | {"teacher_model_kind": "frozen"}
    assert run(settings | {"max_steps": 2})[0] == 0
    trained = str(Path(settings["output_dir"]) / "checkpoint-1")
    status, output = run(
        settings | {"model_name_or_path": trained, "resume_from_checkpoint": "last"}
    )
    assert status == 1
    assert "the frozen teacher is not the one the checkpoint was written with" in output


def test_resuming_from_nothing(run, settings):
    status, output = run(settings | {"resume_from_checkpoint": "last"})
    assert status == 1
    assert "nothing to resume" in output
