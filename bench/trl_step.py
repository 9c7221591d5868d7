"""TRL's trainers before and after `use_engine`: time and peak memory of the loss part of one step.

    python -m bench.trl_step --tokens 2048

A trainer is made around a model with one small layer, so that head and loss are nearly all of the
step; what the layer costs (forward and backward without a head) is measured too and subtracted.
The step is `trainer.compute_loss` and its backward pass on a made-up batch: four sequences of which
`tokens` positions have a loss, and 32 prompt positions each. Every trainer runs in a process of its
own; before and after alternate in it. Peak memory is what the process (on a
GPU: its allocator) grew by, gradients included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bench import files
from bench.flags import positive_int
from bench.machine import machine
from bench.measure import peak_extra_bytes, seconds, spread
from bench.step_tables import command_line, default_path, trl_table

SEQUENCES, PROMPT = 4, 32
TRAINERS = ("sdpo", "gkd", "distillation", "grpo")


def main(argv: list[str] | None = None) -> int:
    """Measure what the flags ask for, write the numbers after each trainer, and print a table;
    returns the exit status: 1 where nothing ran, which leaves no file.
    """
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trainers", nargs="+", default=TRAINERS, choices=TRAINERS)
    parser.add_argument("--tokens", type=positive_int, default=2048, help="tokens with a loss")
    parser.add_argument("--hidden", type=positive_int, default=576)
    parser.add_argument("--vocab", type=positive_int, default=49152)
    parser.add_argument("--rounds", type=positive_int, default=3)
    parser.add_argument("--threads", type=positive_int, default=torch.get_num_threads())
    parser.add_argument(
        "--out",
        type=Path,
        help=f"JSON file; default: bench/results/trl-<hardware>-<date>.json; {files.EXISTING}",
    )
    parser.add_argument("--only", choices=TRAINERS, help=argparse.SUPPRESS)
    flags = parser.parse_args(argv)
    torch.set_num_threads(flags.threads)  # in the children, and here for the file to say so
    if flags.only:
        print(json.dumps(measure(flags.only, flags)))
        return 0
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        out = files.place(
            flags.out, default_path("trl", device), lambda found: files.is_step_file(found, "trl")
        )
    except ValueError as error:
        parser.error(str(error))
    rows: list[dict[str, Any]] = []
    report = {
        "kind": "trl",
        "command": command_line("trl_step", argv),
        "machine": machine(device),
        "settings": {key: getattr(flags, key) for key in ("tokens", "hidden", "vocab", "rounds")},
        "rows": rows,
    }
    ran = False
    for name in flags.trainers:
        rows.append({"name": name, **in_own_process(name, flags)})
        ran = ran or "not_run" not in rows[-1]
        if ran:
            files.write(out, report)
    print(trl_table(report))
    if not ran:
        print("nothing ran: no file is written", file=sys.stderr)
        return 1
    print(f"written: {out}")
    return 0


def in_own_process(name: str, flags: argparse.Namespace) -> dict[str, Any]:
    """`measure` in a fresh interpreter, so that nobody's freed memory hides a peak; `not_run` with
    the reason where it fails.
    """
    command = [sys.executable, "-m", "bench.trl_step", "--only", name]
    for key in ("tokens", "hidden", "vocab", "rounds", "threads"):
        command += [f"--{key}", str(getattr(flags, key))]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRL_EXPERIMENTAL_SILENCE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"no output, status {done.returncode}"]
        return {"not_run": said[-1]}
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(name: str, flags: argparse.Namespace) -> dict[str, Any]:
    """Seconds and peak bytes of one trainer before and after, and of its layer alone."""
    from sdkernels.integrations.trl import use_engine

    with tempfile.TemporaryDirectory() as folder:
        trainer = MAKERS[name](folder, flags)
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    device = trainer.args.device
    batch = {key: value.to(device) for key, value in make_batch(name, flags).items()}
    runs: dict[str, Callable[[], None]] = {
        "before": lambda: step(trainer, batch),
        "after": lambda: step(trainer, batch),
        "layer": lambda: layer_alone(trainer, name, batch),
    }
    times: dict[str, list[float]] = {key: [] for key in runs}
    peaks: dict[str, int | None] = {}
    for round_number in range(flags.rounds + 1):
        for key, run in runs.items():
            with use_engine(trainer) if key == "after" else nullcontext():
                trainer.model.zero_grad()
                if round_number:
                    times[key].append(seconds(run, device))
                    continue
                # Not timed: first calls set up caches.
                run()
                trainer.model.zero_grad()
                peaks[key] = peak_extra_bytes(run, device)
    return {key: {"seconds": spread(times[key]), "peak_extra_bytes": peaks[key]} for key in runs}


def step(trainer: Any, batch: dict[str, Tensor]) -> None:
    """Loss and gradients of one micro-batch."""
    trainer.compute_loss(trainer.model, dict(batch)).backward()


def layer_alone(trainer: Any, name: str, batch: dict[str, Tensor]) -> None:
    """The model without its head: forward and backward, and the teacher's forward."""
    ids = batch.get("input_ids")
    if ids is None:
        ids = torch.cat([batch["prompt_ids"], batch["completion_ids"]], 1)
    trainer.model.model(input_ids=ids).last_hidden_state.sum().backward()
    if name != "grpo":
        with torch.no_grad():
            trainer.model.model(input_ids=ids)


# --- trainers and their batches -------------------------------------------------------------------


def make_batch(name: str, flags: argparse.Namespace) -> dict[str, Tensor]:
    """What the trainer's data collator or rollouts would hand to `compute_loss`."""
    generator = torch.Generator().manual_seed(0)
    length = flags.tokens // SEQUENCES
    prompt = torch.randint(3, flags.vocab, (SEQUENCES, PROMPT), generator=generator)
    completion = torch.randint(3, flags.vocab, (SEQUENCES, length), generator=generator)
    ids = torch.cat([prompt, completion], 1)
    if name == "gkd":
        labels = ids.clone()
        labels[:, :PROMPT] = -100
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": labels}
    return {
        "prompt_ids": prompt,
        "prompt_mask": torch.ones_like(prompt),
        "completion_ids": completion,
        "completion_mask": torch.ones_like(completion),
        "teacher_input_ids": ids,
        "teacher_attention_mask": torch.ones_like(ids),
        "self_distillation_mask": torch.ones(SEQUENCES),
        "advantages": torch.linspace(-1, 1, SEQUENCES),
        "num_items_in_batch": torch.tensor(SEQUENCES * length),
    }


def make_sdpo(folder: str, flags: argparse.Namespace) -> Any:
    """SDPO with the full-vocabulary JSD and the student's weights as the teacher's."""
    from trl.experimental.sdpo import SDPOConfig, SDPOTrainer

    args = SDPOConfig(
        **settings(folder),
        distillation_mode="full_logits",
        distillation_alpha=0.5,
        teacher_model_kind="live",
        num_generations=SEQUENCES,
    )
    return SDPOTrainer(model=model(flags), reward_funcs=reward, args=args, **data())


def make_gkd(folder: str, flags: argparse.Namespace) -> Any:
    """GKD with a teacher of the student's size."""
    from trl.experimental.gkd import GKDConfig, GKDTrainer

    args = GKDConfig(**settings(folder), beta=0.5)
    return GKDTrainer(model=model(flags), teacher_model=model(flags, seed=1), args=args, **data())


def make_distillation(folder: str, flags: argparse.Namespace) -> Any:
    """DistillationTrainer with JSD and a teacher of the student's size."""
    from trl import DistillationConfig, DistillationTrainer

    args = DistillationConfig(**settings(folder), beta=0.5)
    teacher = model(flags, seed=1)
    return DistillationTrainer(model=model(flags), teacher_model=teacher, args=args, **data())


def make_grpo(folder: str, flags: argparse.Namespace) -> Any:
    """GRPO with its defaults."""
    from trl import GRPOConfig, GRPOTrainer

    args = GRPOConfig(**settings(folder), num_generations=SEQUENCES)
    return GRPOTrainer(model=model(flags), reward_funcs=reward, args=args, **data())


MAKERS = {
    "sdpo": make_sdpo,
    "gkd": make_gkd,
    "distillation": make_distillation,
    "grpo": make_grpo,
}


def model(flags: argparse.Namespace, *, seed: int = 0) -> Any:
    """A random Llama of one narrow layer under a head of the size asked for."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=flags.vocab,
            hidden_size=flags.hidden,
            intermediate_size=flags.hidden,
            num_hidden_layers=1,
            num_attention_heads=4,
            eos_token_id=0,
            bos_token_id=1,
            pad_token_id=2,
        )
    )


def settings(folder: str) -> dict[str, Any]:
    """Arguments that all trainers share."""
    return {
        "output_dir": folder,
        "per_device_train_batch_size": SEQUENCES,
        "gradient_accumulation_steps": 1,
        "report_to": "none",
        "use_cpu": not torch.accelerator.is_available(),
        "bf16": False,
        "gradient_checkpointing": False,
        "save_strategy": "no",
    }


def data() -> dict[str, Any]:
    """A dataset and a tokenizer, which constructors ask for and the step does not use."""
    from datasets import Dataset
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    names = {"eos_token": "<e>", "bos_token": "<b>", "pad_token": "<p>", "unk_token": "<p>"}
    vocab = {"<e>": 0, "<b>": 1, "<p>": 2}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(vocab, unk_token="<p>")), **names
    )
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}{% endfor %}"
    row = {
        "prompt": [{"role": "user", "content": "<b>"}],
        "messages": [{"role": "user", "content": "<b>"}, {"role": "assistant", "content": "<e>"}],
    }
    return {"train_dataset": Dataset.from_list([row] * 8), "processing_class": tokenizer}


def reward(completions: list[Any], **_: Any) -> list[float]:
    """Never called: the batch brings its advantages."""
    return [0.0] * len(completions)


if __name__ == "__main__":
    sys.exit(main())
