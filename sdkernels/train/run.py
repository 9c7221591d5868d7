"""One run from its settings to its folder: load, check, evaluate, train, evaluate, record."""

from __future__ import annotations

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from transformers import set_seed

from sdkernels import contexts, recipes
from sdkernels._version import __version__
from sdkernels.contexts import Example, LocalCritic, ServerCritic
from sdkernels.train import checkpoint
from sdkernels.train.config import SelfDistillConfig
from sdkernels.train.config_file import write_yaml
from sdkernels.train.data import GYM_SOURCES, load_examples
from sdkernels.train.evaluation import compare, headline, read_result, save_result
from sdkernels.train.journal import JOURNAL_OF_RANK, Journal
from sdkernels.train.loading import add_lora, disable_dropout, load_model, no_progress_bars
from sdkernels.train.method_checks import check_method
from sdkernels.train.records import METRICS_FILE, TOKENS_FILE, JsonLines, write_json
from sdkernels.train.rollout import RolloutBackend
from sdkernels.train.server import ServerRollout
from sdkernels.train.step_metrics import peak_memory_bytes, reset_peak_memory
from sdkernels.train.teacher import check_vocabulary
from sdkernels.train.trainer import SelfDistillTrainer
from sdkernels.train.weight_sync import FolderSync, NcclSync, WeightSync

logger = logging.getLogger(__name__)

CONFIG_FILE = "config.yaml"
SUMMARY_FILE = "summary.json"
BEFORE_FILE = "before.json"
AFTER_FILE = "after.json"
FINAL_FOLDER = "final"
PACKAGES = ("torch", "transformers", "accelerate", "peft", "datasets", "reasoning-gym")


@dataclass
class Parts:
    """What a run is made of. Those that are None are made from the settings; a study shares them
    between runs.

    `before` is the evaluation of the untrained model.
    """

    model: Any = None
    tokenizer: Any = None
    examples: Sequence[Example] | None = None
    eval_examples: Sequence[Example] | None = None
    teacher_model: Any = None
    critic: Any = None
    rollout: RolloutBackend | None = None
    before: dict[str, Any] | None = None


def train(
    config: SelfDistillConfig, parts: Parts | None = None, *, save_final: bool = True
) -> dict[str, Any]:
    """Run one training from its settings; everything it leaves is in `config.output_dir`.

    Args:
        parts: things that exist already; see `Parts`.
        save_final: write the trained model to `final/`.

    Returns:
        What is in `summary.json`.

    Raises:
        ValueError: settings or data that cannot work, before anything was trained.
        RunError: the run had to stop (`Interrupted`, `CheckpointError`, `ModelError`, ...); the
            message says what to do.
    """
    parts = parts or Parts()
    folder = Path(config.output_dir)
    resume = checkpoint.resolve_resume(folder, config.resume_from_checkpoint)
    if resume is None and config.process_index == 0:
        _start_anew(folder, overwrite=config.overwrite_output_dir)
    # Names are checked before anything is loaded.
    recipe = recipes.get(config.recipe, **config.mapping("recipe_args"))
    context = contexts.get(config.context, **config.mapping("context_args"))
    check_method(config, recipe, context)
    started = time.perf_counter()
    reset_peak_memory()
    # A new adapter starts from random numbers.
    set_seed(config.seed)
    _load_parts(config, parts, recipe, context)
    trainer = SelfDistillTrainer(
        parts.model,
        config,
        parts.examples or [],
        parts.tokenizer,
        eval_dataset=parts.eval_examples,
        teacher_model=parts.teacher_model,
        critic=parts.critic,
        rollout=parts.rollout,
        weight_sync=make_weight_sync(config),
    )
    if config.process_index == 0:
        folder.mkdir(parents=True, exist_ok=True)
        write_yaml(config, folder / CONFIG_FILE)
    before = _evaluate_before(config, parts, trainer, folder, resumed=resume is not None)
    trainer.train(str(resume) if resume else None)
    if save_final:
        _save_final(trainer, folder)
    after = trainer.evaluate_examples()
    if after is not None and config.process_index == 0:
        save_result(folder / AFTER_FILE, after)
    summary = _summary(config, trainer, before, after, time.perf_counter() - started)
    if config.process_index == 0:
        write_json(folder / SUMMARY_FILE, summary)
    return summary


def _start_anew(folder: Path, *, overwrite: bool) -> None:
    """Refuse to write over a run, or clear it if that was asked for."""
    kept = checkpoint.checkpoints(folder)
    steps = JsonLines(folder / METRICS_FILE).read()
    if not kept and not steps:
        return
    if not overwrite:
        how = "resume it with resume_from_checkpoint=last, " if kept else ""
        raise ValueError(
            f"output_dir={str(folder)!r} already holds a run of {len(steps)} steps; {how}choose "
            "another folder, or delete "
            "the run with overwrite_output_dir=true"
        )
    for stale in (*kept, *checkpoint.incomplete_checkpoints(folder), folder / FINAL_FOLDER):
        shutil.rmtree(stale, ignore_errors=True)
    for name in (METRICS_FILE, TOKENS_FILE, SUMMARY_FILE, BEFORE_FILE, AFTER_FILE):
        (folder / name).unlink(missing_ok=True)


def _load_parts(
    config: SelfDistillConfig, parts: Parts, recipe: recipes.Recipe, context: contexts.Context
) -> None:
    """Make what is missing: data first, because it is what is most often wrong, and quick to
    check.
    """
    if parts.examples is None:
        parts.examples = load_dataset(config)
    if parts.eval_examples is None and config.eval_dataset is not None:
        parts.eval_examples = load_dataset(config, evaluation=True)
    if parts.model is None:
        parts.model, parts.tokenizer = load_student(config)
    if parts.rollout is None and config.rollout_backend == "server":
        parts.rollout = make_server_rollout(config, parts.tokenizer)
    if "teacher" not in recipe.needs:
        return
    if parts.teacher_model is None and config.teacher_model_kind == "external":
        parts.teacher_model = load_external_teacher(config, parts.model, parts.tokenizer)
    if parts.critic is None and context.generates:
        parts.critic = make_critic(config, parts.tokenizer)


def load_dataset(config: SelfDistillConfig, *, evaluation: bool = False) -> list[Example]:
    """The training or evaluation examples that the settings name.

    Raises:
        ValueError: no data set is named, or it is not usable; the message names the file and row.
    """
    source = config.eval_dataset if evaluation else config.dataset
    if source is None:
        raise ValueError(
            "dataset is not set: give a .jsonl or .parquet file, a datasets id, or reasoning-gym "
            "tasks "
            "(--dataset reasoning-gym:chain_sum,gsm_symbolic)"
        )
    size = config.eval_dataset_size if evaluation else config.dataset_size
    settings = config.mapping("eval_dataset_args" if evaluation else "dataset_args")
    seed = config.seed if config.data_seed is None else config.data_seed
    is_gym = source.startswith(GYM_SOURCES)
    columns = config.mapping("dataset_columns")
    if evaluation and config.eval_dataset_columns is not None:
        columns = config.mapping("eval_dataset_columns")
    examples = load_examples(
        source,
        split=config.eval_dataset_split if evaluation else config.dataset_split,
        limit=None if is_gym else size,
        size=size if is_gym else None,
        seed=seed,
        settings=settings or None,
        columns=None if is_gym else columns,
        instruction=None if is_gym else config.instruction,
        require=("answer",) if evaluation else (),
    )
    return examples if evaluation else examples * config.dataset_repeat


def load_student(config: SelfDistillConfig) -> tuple[Any, Any]:
    """The student's model and tokenizer, with dropout and LoRA as the settings say."""
    model, tokenizer = load_model(
        config.model_name_or_path,
        dtype=config.dtype,
        attn_implementation=config.attn_implementation,
        trust_remote_code=config.trust_remote_code,
    )
    if config.disable_dropout:
        disable_dropout(model)
    if config.use_peft:
        model = add_lora(
            model,
            r=config.lora_r,
            alpha=config.lora_alpha,
            dropout=config.lora_dropout,
            target_modules=config.lora_target_modules,
        )
    return model, tokenizer


def load_external_teacher(config: SelfDistillConfig, student: Any, tokenizer: Any) -> Any:
    """The model of an external teacher, refused if its ids mean something else."""
    assert config.teacher_model_name_or_path is not None  # the configuration's own invariant
    teacher, teacher_tokenizer = load_model(
        config.teacher_model_name_or_path,
        dtype=config.dtype,
        trust_remote_code=config.trust_remote_code,
        need_chat_template=False,
    )
    check_vocabulary(student, tokenizer, teacher, teacher_tokenizer, config.valid_vocab)
    return teacher.requires_grad_(False)


def make_critic(config: SelfDistillConfig, student_tokenizer: Any) -> Any:
    """The critic that the settings name; a server is asked for one token first, so that a dead one
    stops the run here.
    """
    cache = config.critic_cache_dir or str(Path(config.output_dir) / "critiques")
    if config.critic_server_url is not None:
        critic = ServerCritic(
            config.critic_server_url,
            config.critic_server_model or "default",
            max_tokens=config.critic_max_new_tokens,
            timeout_seconds=config.critic_timeout,
            cache_dir=cache,
            tokenizer=student_tokenizer,
        )
        critic.check()
        return critic
    model, tokenizer = load_model(
        config.critic_model_name_or_path or config.model_name_or_path, dtype=config.dtype
    )
    model.to(config.device)
    return LocalCritic(
        model.requires_grad_(False),
        tokenizer,
        max_new_tokens=config.critic_max_new_tokens,
        cache_dir=cache,
    )


def make_server_rollout(config: SelfDistillConfig, tokenizer: Any) -> ServerRollout:
    """Client of the rollout server that the settings name."""
    assert config.rollout_server_url is not None  # the configuration's own invariant
    if config.rollout_server_sync == "none":
        logger.warning(
            "Rollouts come from %s, whose weights this run does not update: keep them current, or "
            "rollouts are off-policy (rollout_server_sync).",
            config.rollout_server_url,
        )
    journal = Path(config.output_dir) / JOURNAL_OF_RANK.format(rank=config.process_index)
    return ServerRollout(
        config.rollout_server_url,
        tokenizer,
        model=config.rollout_server_model,
        timeout=config.rollout_server_timeout,
        retries=config.rollout_server_retries,
        concurrency=config.rollout_server_concurrency,
        logprobs=config.rollout_server_logprobs,
        journal=Journal(journal),
    )


def make_weight_sync(config: SelfDistillConfig) -> WeightSync | None:
    """What the settings name to keep a rollout server's weights current."""
    if config.rollout_server_sync == "none":
        return None
    assert config.rollout_server_url is not None  # the configuration's own invariant
    if config.rollout_server_sync == "nccl":
        return NcclSync(config.rollout_server_url, config.device)
    assert config.rollout_server_folder is not None  # likewise
    return FolderSync(config.rollout_server_url, config.rollout_server_folder)


def _evaluate_before(
    config: SelfDistillConfig,
    parts: Parts,
    trainer: SelfDistillTrainer,
    folder: Path,
    *,
    resumed: bool,
) -> dict[str, Any] | None:
    if parts.before is None:
        file = folder / BEFORE_FILE
        # The weights before training are gone once a run is resumed; what was measured then is on
        # disk.
        parts.before = read_result(file) if resumed and file.is_file() else None
    if parts.before is None and not resumed:
        parts.before = trainer.evaluate_examples()
    if parts.before is not None and config.process_index == 0:
        save_result(folder / BEFORE_FILE, parts.before)
    return parts.before


def _save_final(trainer: SelfDistillTrainer, folder: Path) -> None:
    final = folder / FINAL_FOLDER
    hint = "The last checkpoint holds the same weights."
    with no_progress_bars(), checkpoint.all_or_nothing(final, resume_hint=hint):
        trainer.save_model(str(final))


def _summary(
    config: SelfDistillConfig,
    trainer: SelfDistillTrainer,
    before: dict[str, Any] | None,
    after: dict[str, Any] | None,
    seconds: float,
) -> dict[str, Any]:
    lines = trainer.metrics_log.read()
    busy = [
        line["num_tokens"] / line["tokens_per_second"]
        for line in lines
        if line.get("tokens_per_second")
    ]
    tokens = sum(line["num_tokens"] for line in lines if line.get("tokens_per_second"))
    teacher = trainer.teacher
    return {
        "condition": config.label,
        "title": config.title or config.label,
        "recipe": config.recipe,
        "context": config.context if teacher is not None else "none",
        "teacher": None if teacher is None else teacher.kind,
        "model": config.model_name_or_path,
        "num_parameters": sum(weight.numel() for weight in trainer.unwrapped.parameters()),
        "seed": config.seed,
        "steps": trainer.state.global_step,
        "before": None if before is None else headline(before),
        "after": None if after is None else headline(after),
        "change": None if before is None or after is None else compare(before, after),
        "last": lines[-1] if lines else None,
        "tokens_per_second": tokens / sum(busy) if busy else None,
        "peak_memory_bytes": max(
            (line["peak_memory_bytes"] for line in lines), default=peak_memory_bytes()
        ),
        "seconds_total": seconds,
        "context_counts": dict(trainer.builder.services.counts),
        "rollout_counts": dict(getattr(trainer.builder.backend, "counts", {})),
        "versions": versions(),
        "config": config.changed(),
    }


def versions() -> dict[str, str]:
    """Versions of what the numbers depend on."""
    found = {"sdkernels": __version__}
    for package in PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    return found
