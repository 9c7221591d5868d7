"""Everything a run can be told: `TrainingArguments` plus the settings of self-distillation.

Names follow TRL where TRL has the same thing. `per_device_train_batch_size` counts PROMPTS; each
becomes `num_generations` rollouts, so a group is never split over micro-batches or ranks.
"""

# ruff: noqa: RUF009 - `_setting` is `dataclasses.field` with a help text, evaluated once as meant.

from dataclasses import MISSING, dataclass, field, fields
from typing import Any, get_type_hints

from transformers import TrainingArguments
from transformers.trainer_utils import SchedulerType

from sdkernels import contexts, recipes
from sdkernels.train.config_checks import (
    AGGREGATIONS,
    DTYPES,
    GATES,
    ROLLOUT_BACKENDS,
    SYNC_KINDS,
    TEACHER_KINDS,
    check_choices,
    check_combinations,
    check_inherited,
    check_ranges,
    check_rollout_source,
    check_schedule,
)
from sdkernels.train.settings import as_mapping, check_kind, is_numeric, plain


def _setting(default: Any, text: str) -> Any:
    return field(default=default, metadata={"help": text})


@dataclass
class SelfDistillConfig(TrainingArguments):
    """Settings of one self-distillation run.

    Every field of `TrainingArguments` is accepted too. Help texts give the unit; defaults stand in
    the code.

    Raises:
        ValueError: a value out of range, or a combination that cannot work, with what is accepted.
    """

    # --- defaults that differ from TrainingArguments ----------------------------------------------
    learning_rate: float = _setting(1e-5, "Initial learning rate of AdamW.")
    lr_scheduler_type: SchedulerType | str = _setting(
        "constant_with_warmup",
        "Learning rate schedule; constant after warmup_steps by default, so that a run can be made "
        "longer later.",
    )
    per_device_train_batch_size: int = _setting(
        4,
        "PROMPTS per device and micro-batch. Each becomes num_generations rollouts; a group is "
        "never split. "
        "Rollouts in one forward pass = per_device_train_batch_size * num_generations.",
    )
    logging_steps: float = _setting(
        1, "Optimiser steps between two lines of metrics.jsonl and the loggers."
    )
    save_total_limit: int | None = _setting(
        2, "Complete checkpoints to keep; the oldest go first. None: all."
    )
    remove_unused_columns: bool = _setting(False, "Must stay off: examples are not model inputs.")
    # HfArgumentParser takes the second member of the union for the type of the flag.
    report_to: None | str | list[str] = _setting(  # noqa: RUF036
        "none", "Loggers: none, tensorboard, wandb, trackio, ... (as in transformers)."
    )
    logging_nan_inf_filter: bool = _setting(
        False, "Show a loss that is NaN or infinite as it is, instead of the average so far."
    )
    dataloader_pin_memory: bool = _setting(False, "Off: batches hold text, not tensors.")
    overwrite_output_dir: bool = _setting(
        False,
        "Start anew in a folder that already holds a run; its metrics and checkpoints are deleted.",
    )

    # --- model ------------------------------------------------------------------------------------
    model_name_or_path: str = _setting(
        "smollm2",
        "Student: a Hugging Face id, a local folder, or `smollm2` for the embedded "
        "SmolLM2-135M-Instruct.",
    )
    dtype: str = _setting("float32", f"Dtype of the student's weights: {', '.join(DTYPES)}.")
    attn_implementation: str | None = _setting(
        None,
        "Attention implementation (sdpa, flash_attention_2, ...); None lets transformers choose.",
    )
    padding_free: bool | None = _setting(
        None,
        "Pack the sequences of a forward pass without padding. None: where attention is flash "
        "attention; true: everywhere, through block-diagonal masks.",
    )
    trust_remote_code: bool = _setting(False, "Allow model code from the hub to run.")
    disable_dropout: bool = _setting(
        True, "Set every dropout to 0, so that student and teacher can agree exactly."
    )
    use_peft: bool = _setting(False, "Train LoRA adapters instead of all weights.")
    lora_r: int = _setting(16, "Rank of the LoRA adapter.")
    lora_alpha: int = _setting(32, "LoRA alpha; the update is scaled by alpha / rank.")
    lora_dropout: float = _setting(0.0, "LoRA dropout probability.")
    lora_target_modules: list[str] | None = _setting(
        None, "Modules with LoRA; None: all linear layers but the head."
    )

    # --- data -------------------------------------------------------------------------------------
    dataset: str | None = _setting(
        None,
        "Training prompts: a .jsonl or .parquet file, `reasoning-gym:<task>,<task>`, or a datasets "
        "id.",
    )
    dataset_split: str = _setting("train", "Split of a datasets id.")
    dataset_size: int | None = _setting(
        None, "Number of examples to take, or to generate. None: all, or 256 generated ones."
    )
    dataset_args: dict | str | None = _setting(
        None,
        "Settings of reasoning-gym tasks, as JSON or key=value,key=value (e.g. min_terms=2).",
    )
    dataset_columns: dict | str | None = _setting(
        None, "Which column is which field, where names do not say it (e.g. prompt=problem)."
    )
    dataset_repeat: int = _setting(
        1,
        "Times that each training example stands in an epoch, so that a few problems fill a batch.",
    )
    instruction: str | None = _setting(
        None, "Paragraph added to prompts of files and data sets that are plain text."
    )
    eval_dataset: str | None = _setting(
        None, "Evaluation problems, same forms as dataset. None: no evaluation."
    )
    eval_dataset_split: str = _setting("test", "Split of the evaluation datasets id.")
    eval_dataset_size: int | None = _setting(None, "Number of evaluation examples.")
    eval_dataset_args: dict | str | None = _setting(None, "Like dataset_args, for eval_dataset.")
    eval_dataset_columns: dict | str | None = _setting(
        None, "Like dataset_columns, for eval_dataset; None: those of dataset."
    )

    # --- prompts ----------------------------------------------------------------------------------
    max_prompt_length: int = _setting(
        512, "Longest student prompt in tokens; a longer one stops the run by name."
    )
    max_context_tokens: int | None = _setting(
        None,
        "Longest privileged part of a teacher prompt in tokens. None: what the model's window "
        "leaves.",
    )
    truncate_context: bool = _setting(
        False,
        "Cut contexts that are longer (visibly, and counted) instead of stopping before training.",
    )
    chat_template_kwargs: dict | str | None = _setting(
        None, "Extra arguments of the chat template for the student (e.g. enable_thinking=false)."
    )
    teacher_chat_template_kwargs: dict | str | None = _setting(
        None,
        "The same for the teacher; None: those of the student. Differing thinking switches are a "
        "pairing.",
    )

    # --- rollouts ---------------------------------------------------------------------------------
    num_generations: int = _setting(8, "Rollouts per prompt (the group).")
    max_completion_length: int = _setting(256, "Longest rollout in tokens.")
    temperature: float = _setting(
        1.0,
        "Sampling temperature; also that of the loss, where neither the recipe nor "
        "loss_temperature names another.",
    )
    top_p: float = _setting(1.0, "Nucleus sampling mass; 1 keeps everything.")
    top_k: int = _setting(0, "Sample from the k likeliest tokens; 0 keeps everything.")
    min_p: float | None = _setting(None, "Minimum probability relative to the likeliest token.")
    repetition_penalty: float = _setting(1.0, "Penalty on repeated tokens; 1 is none.")
    generation_kwargs: dict | str | None = _setting(
        None, "More settings of transformers' GenerationConfig."
    )
    steps_per_generation: int | None = _setting(
        None,
        "Micro-batches whose prompts are rolled out at once; a multiple of "
        "gradient_accumulation_steps, which is what None means. More: several optimiser steps per "
        "batch of rollouts, the later ones off-policy.",
    )
    num_iterations: int = _setting(
        1,
        "Passes over each batch of rollouts (mu of GRPO); from the second optimiser step on, "
        "importance ratios and their clips act.",
    )
    mask_truncated_completions: bool = _setting(
        False, "Leave rollouts that hit max_completion_length out of the loss."
    )
    rollout_backend: str = _setting(
        "transformers",
        f"Who samples: {', '.join(ROLLOUT_BACKENDS)}. dataset: nobody, the response is the field "
        "`solution` (supervised fine-tuning with recipe nll, off-policy distillation).",
    )
    rollout_batch_size: int | None = _setting(
        None, "Sequences generated at once; None: all of the step."
    )
    rollout_server_url: str | None = _setting(
        None,
        "Base URL of an OpenAI-compatible server, e.g. http://localhost:8000/v1. It must serve the "
        "current weights.",
    )
    rollout_server_model: str | None = _setting(
        None, "Model name to ask the server for; None: the first it lists."
    )
    rollout_server_timeout: float = _setting(
        120.0, "Seconds until one request to the server counts as failed."
    )
    rollout_server_logprobs: bool = _setting(
        False,
        "Take the importance ratio's old log-probs from the server. They must be those of the "
        "sampling distribution (vLLM: --logprobs-mode processed_logprobs).",
    )
    rollout_server_sync: str = _setting(
        "none", f"How the server gets new weights: {', '.join(SYNC_KINDS)}."
    )
    rollout_server_folder: str | None = _setting(
        None, "Model folder that the server was started with, for rollout_server_sync=folder."
    )
    rollout_server_retries: int = _setting(
        6, "Retries of a failed request, with growing pauses, before the run stops."
    )
    rollout_server_concurrency: int = _setting(16, "Requests in flight at once.")

    # --- method -----------------------------------------------------------------------------------
    recipe: str = _setting("opsd", "Loss: see `sdkernels recipes`.")
    recipe_args: dict | str | None = _setting(
        None, "Settings of the recipe, as JSON or key=value,key=value."
    )
    context: str = _setting(
        "reference_solution",
        "What the teacher sees besides the question: see `sdkernels contexts`. Where none is "
        "named, recipes cepo and rlcsd take `contrastive`, rosd `self_reflection` and grpo's KL "
        "`none`.",
    )
    context_args: dict | str | None = _setting(
        None, "Settings of the context, as JSON or key=value,key=value."
    )
    aggregation: str = _setting(
        "token_mean", f"Mean over the optimisation step: {' or '.join(AGGREGATIONS)}."
    )
    scale_rewards: str = _setting(
        "group", "Divide advantages by the group's standard deviation (group) or not (none)."
    )
    gate: str | None = _setting(
        None,
        f"Entropy gate of recipes that need one: {', '.join(GATES)}; None: the recipe's own.",
    )
    gate_args: dict | str | None = _setting(
        None, "Settings of the gate, as JSON or key=value,key=value."
    )
    skip_first_tokens: int = _setting(
        0, "Response tokens at the start of each rollout that are left out of the loss."
    )
    loss_temperature: float | None = _setting(
        None,
        "Temperature of the student's logits in the loss; None: the recipe's, else temperature.",
    )
    teacher_temperature: float | None = _setting(
        None, "Temperature of the teacher's logits; None: the student's."
    )

    # --- teacher ----------------------------------------------------------------------------------
    teacher_model_kind: str = _setting("frozen", f"Teacher weights: {', '.join(TEACHER_KINDS)}.")
    teacher_model_name_or_path: str | None = _setting(
        None, "Model of an external teacher (same vocabulary)."
    )
    teacher_update_rate: float = _setting(
        0.05,
        "EMA rate r in (0, 1]: teacher <- (1 - r) * teacher + r * student, after every optimiser "
        "step. For a trust_region teacher the share of the student's logits.",
    )
    teacher_sync_steps: int = _setting(
        10, "Optimiser steps between two copies of a snapshot teacher."
    )
    valid_vocab: int | None = _setting(
        None,
        "Number of leading vocabulary entries that are real, where padded sizes of student and "
        "teacher differ.",
    )

    # --- critic (contexts that need one) ----------------------------------------------------------
    critic_model_name_or_path: str | None = _setting(
        None, "Local critic; None: the student's initial weights, frozen."
    )
    critic_server_url: str | None = _setting(
        None, "OpenAI-compatible server of the critic, instead of a local one."
    )
    critic_server_model: str | None = _setting(None, "Model name to ask the critic server for.")
    critic_max_new_tokens: int = _setting(256, "Longest critique in tokens.")
    critic_cache_dir: str | None = _setting(
        None, "Folder of the critique cache; None: inside output_dir."
    )
    critic_timeout: float = _setting(
        120.0, "Seconds until one request to the critic server counts as failed."
    )

    # --- evaluation and records -------------------------------------------------------------------
    num_generations_eval: int = _setting(1, "Samples per evaluation problem (the k of Avg@k).")
    temperature_eval: float | None = _setting(
        None, "Sampling temperature in evaluation; None: temperature; 0: greedy."
    )
    condition: str | None = _setting(None, "Name of this run in reports; None: recipe and context.")
    title: str | None = _setting(None, "Longer name of this run in reports.")
    dump_tokens: int = _setting(
        2, "Rollouts per dump written token by token to tokens.jsonl; 0: none."
    )
    dump_tokens_steps: int = _setting(1, "Optimiser steps between two such dumps.")

    # --- engine -----------------------------------------------------------------------------------
    engine_backend: str = _setting(
        "auto", "Rows implementation of the engine: auto, triton, torch or compiled."
    )
    chunk_bytes: int | None = _setting(
        None, "Bytes the loss may use beyond inputs and gradients; None: from the device."
    )
    slab_dtype: str = _setting(
        "float32", "Logit slabs in float32, or `model` for the weights' dtype (less exact)."
    )
    engine_debug: bool = _setting(False, "Run the engine's synchronising checks on GPU too.")

    def __new__(cls, *values: Any, **settings: Any) -> "SelfDistillConfig":
        """Take down which settings are named: one that is named at its default looks like one that
        is not, and what is named is used or refused, never replaced.
        """
        config = super().__new__(cls)
        in_order = [f.name for f in fields(cls) if f.init]
        config._named = {*in_order[: len(values)], *settings}
        return config

    def __post_init__(self) -> None:
        # Taken down before TrainingArguments rewrites its fields. Comparing with a second instance
        # later would not do: making one resets the process's accelerator.
        self._given = {
            f.name: plain(getattr(self, f.name))
            for f in fields(self)
            if (f.name in self._named and f.name in FIELDS_OF_RECIPES)
            or (f.init and f.default is not MISSING and getattr(self, f.name) != f.default)
        }
        self._check_kinds()
        check_ranges(self)  # before transformers, whose messages do not name the value
        super().__post_init__()
        for name in MAPPING_FIELDS:
            texts = contexts.text_settings(self.context) if name == "context_args" else ()
            setattr(self, name, as_mapping(name, getattr(self, name), texts=texts))
        check_choices(self)
        check_combinations(self)
        check_rollout_source(self)
        check_schedule(self)
        check_inherited(self)
        self._take_context_of_recipe()

    def _take_context_of_recipe(self) -> None:
        """Recipes that make little sense with another context bring their own, unless one is
        named. Named `context_args` alone are settings of what the recipe brings.
        """
        if self.recipe not in recipes.names() or "context" in self._named:
            return
        own = recipes.get(self.recipe, **self.mapping("recipe_args")).context
        if own is not None:
            self.context = own[0]
            self.context_args = {**own[1], **self.mapping("context_args")} or None

    def _check_kinds(self) -> None:
        inherited = {f.name for f in fields(TrainingArguments)}
        for name, hint in get_type_hints(type(self)).items():
            if name not in self.__dict__:
                continue
            value = self.__dict__[name]
            # Of those of transformers the numbers only: it converts many of the others itself.
            if name not in inherited or (value is not None and is_numeric(hint)):
                check_kind(name, value, hint)

    def mapping(self, name: str) -> dict[str, Any]:
        """One of the `*_args` and `*_kwargs` settings as a mapping, empty if it is not set."""
        return dict(getattr(self, name) or {})

    @property
    def steps_per_rollout_pass(self) -> int:
        """Optimiser steps in one pass over a batch of rollouts."""
        each = self.gradient_accumulation_steps
        return (self.steps_per_generation or each) // each

    @property
    def is_off_policy(self) -> bool:
        """Whether a batch of rollouts serves several optimiser steps."""
        return self.steps_per_rollout_pass * self.num_iterations > 1

    @property
    def label(self) -> str:
        """Name of this run in reports; the context belongs to it where the recipe has a teacher."""
        recipe = recipes.get(self.recipe, **self.mapping("recipe_args"))
        own = f"{self.recipe}-{self.context}" if "teacher" in recipe.needs else self.recipe
        return self.condition or own

    def changed(self) -> dict[str, Any]:
        """Settings that were given and are not the defaults, or that a recipe would bring if they
        were not given: what `config.yaml` of a run holds.
        """
        return {"output_dir": self.output_dir, **self._given}


MAPPING_FIELDS = (
    "recipe_args",
    "context_args",
    "gate_args",
    "dataset_args",
    "eval_dataset_args",
    "dataset_columns",
    "eval_dataset_columns",
    "generation_kwargs",
    "chat_template_kwargs",
    "teacher_chat_template_kwargs",
)


# What a recipe brings, unless it is named.
FIELDS_OF_RECIPES = ("context", "context_args")
