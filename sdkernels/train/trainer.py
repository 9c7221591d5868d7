"""`SelfDistillTrainer`: transformers' Trainer with rollouts, teacher prompts and the fused loss.

`RolloutTrainer` feeds the steps; here each micro-batch runs the trunks and the loss. The lm_head is
never applied by the model: the engine does it, without a `[tokens, vocab]` tensor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import TrainerCallback

from sdkernels import contexts, recipes
from sdkernels.contexts import Example, Services
from sdkernels.engine import LMHead, TokenStats
from sdkernels.train.batch import MicroBatch, Row
from sdkernels.train.config import SelfDistillConfig
from sdkernels.train.dataset_rollout import DatasetRollout
from sdkernels.train.evaluation import evaluate
from sdkernels.train.forward import run_inside_forward
from sdkernels.train.hooks import StepHooks, use_compact_progress
from sdkernels.train.interrupt import StopRequest
from sdkernels.train.loading import context_window
from sdkernels.train.method_checks import check_method, check_support_size
from sdkernels.train.method_passes import MethodPasses
from sdkernels.train.policy_passes import PolicyPasses
from sdkernels.train.prepare import StepBuilder, context_limit, sampling_of_evaluation
from sdkernels.train.ratio_metrics import add_ratio_metrics
from sdkernels.train.records import (
    METRICS_FILE,
    TOKENS_FILE,
    JsonLines,
    row_columns,
    token_record,
)
from sdkernels.train.rollout import RolloutBackend, TransformersRollout
from sdkernels.train.rollout_trainer import RolloutTrainer
from sdkernels.train.server import ServerRollout
from sdkernels.train.sharding import check_mode
from sdkernels.train.sides import check_packing, packs_by_itself
from sdkernels.train.step_loss import StepLoss, make_gate
from sdkernels.train.step_metrics import LISTS, StepMetrics, Timers, peak_memory_bytes
from sdkernels.train.step_switches import split_state
from sdkernels.train.teacher import TeacherWeights
from sdkernels.train.token_metrics import TokenMetrics
from sdkernels.train.weight_sync import WeightSync


class SelfDistillTrainer(RolloutTrainer):
    """Train a causal language model on its own rollouts against a teacher that sees more.

    Args:
        model: the student; a PEFT model is welcome.
        args: settings.
        train_dataset: `Example`s.
        eval_dataset: `Example`s for `eval_strategy`, or None.
        processing_class: the tokenizer, with a chat template.
        teacher_model: model of an external teacher, or a frozen copy that several runs share.
        critic: for contexts that need one.
        rollout: samples responses; default: transformers' generation with the live model.
        weight_sync: gives the server that `rollout` asks the current weights.
        callbacks, optimizers: as in transformers.

    `per_device_train_batch_size` counts prompts; each becomes `num_generations` rollouts.

    Raises:
        ValueError: settings or data that cannot work; the message names the field or the row.
    """

    args: SelfDistillConfig

    def __init__(
        self,
        model: Any,
        args: SelfDistillConfig,
        train_dataset: Sequence[Example],
        processing_class: Any,
        *,
        eval_dataset: Sequence[Example] | None = None,
        teacher_model: Any = None,
        critic: Any = None,
        rollout: RolloutBackend | None = None,
        weight_sync: WeightSync | None = None,
        callbacks: list[TrainerCallback] | None = None,
        optimizers: tuple[Any, Any] = (None, None),
    ) -> None:
        recipe = recipes.get(args.recipe, **args.mapping("recipe_args"))
        context = contexts.get(args.context, **args.mapping("context_args"))
        check_method(args, recipe, context)
        head = LMHead.from_model(model, valid_vocab=args.valid_vocab)
        check_support_size(recipe, head.total_vocab)
        self.stop = StopRequest()
        self.teacher = self._make_teacher(args, recipe, model, teacher_model)
        window = _narrower(context_window(model), teacher_model)
        services = Services(
            tokenizer=processing_class,
            critic=critic,
            max_context_tokens=context_limit(args, window),
            pool=train_dataset,
        )
        if isinstance(rollout, ServerRollout) and rollout.should_stop is None:
            rollout.should_stop = self.abandon_if_asked
        backend = rollout or self._make_backend(args, processing_class)
        self.builder = StepBuilder(
            args, processing_class, recipe, context, backend, services, window=window
        )
        self.builder.check(train_dataset)
        self.step_loss = StepLoss(args, recipe, make_gate(args, recipe), self.teacher)
        self.passes = PolicyPasses(self.step_loss, self._without_gradient, self._collate)
        self.weight_sync = weight_sync
        self.method_passes = MethodPasses(
            self.step_loss, self._without_gradient, self.sum_over_ranks
        )
        self.with_teacher = self.teacher is not None
        super().__init__(
            model=model,
            args=args,
            data_collator=list,
            train_dataset=train_dataset,
            eval_dataset=eval_dataset,
            processing_class=processing_class,
            callbacks=[StepHooks(self), *(callbacks or [])],
            optimizers=optimizers,
        )
        check_mode(self.accelerator)
        self.packed = self._packs()
        use_compact_progress(self)
        # Weights are already those of the whole optimisation step.
        self.loss_is_scaled_for_ga = True
        self.metrics = StepMetrics()
        self.token_metrics = TokenMetrics(self.metrics, processing_class)
        self.timers = Timers(args.device)
        folder = Path(args.output_dir)
        self.metrics_log = JsonLines(folder / METRICS_FILE)
        self.tokens_log = JsonLines(folder / TOKENS_FILE)
        self.logs = (self.metrics_log, self.tokens_log)
        self._shown: list[Row] = []
        self._logged_at = time.perf_counter()

    def _packs(self) -> bool:
        """Whether to pack sequences; refuses a model that would mix them."""
        wanted = self.args.padding_free
        if wanted is None:
            wanted = packs_by_itself(self.model)
        external = None if self.teacher is None else self.teacher.model
        for model in filter(None, (self.model, external)) if wanted else ():
            check_packing(model)
        return wanted

    @property
    def unwrapped(self) -> Any:
        """The student without the wrappers of distribution and mixed precision."""
        return self.accelerator.unwrap_model(self.model_wrapped, keep_fp32_wrapper=True)

    def _make_backend(self, args: SelfDistillConfig, tokenizer: Any) -> RolloutBackend:
        if args.rollout_backend == "dataset":
            return DatasetRollout(tokenizer)
        return TransformersRollout(
            lambda: self.unwrapped,
            tokenizer,
            batch_size=args.rollout_batch_size,
            should_stop=self.abandon_if_asked,
        )

    @staticmethod
    def _make_teacher(
        args: SelfDistillConfig, recipe: recipes.Recipe, model: Any, teacher_model: Any
    ) -> TeacherWeights | None:
        if "teacher" not in recipe.needs:
            return None
        teacher = TeacherWeights(
            args.teacher_model_kind,
            model,
            model=teacher_model,
            update_rate=args.teacher_update_rate,
            sync_steps=args.teacher_sync_steps,
        )
        if teacher.model is not None:
            teacher.model.to(args.device)
        return teacher

    # --- one optimisation step --------------------------------------------------------------------

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """This micro-batch's share of the step's loss. The denominator is already in the
        weights.
        """
        self.abandon_if_asked()
        batch: MicroBatch = inputs["micro_batch"]

        def loss_of_batch() -> tuple[Tensor, TokenStats]:
            with self.accelerator.autocast():
                return self.step_loss(self.unwrapped, batch, inputs["thresholds"], self.timers)

        loss, stats = run_inside_forward(model, self.unwrapped, loss_of_batch)
        self.token_metrics.add(batch, stats)
        add_ratio_metrics(
            self.metrics,
            batch,
            stats,
            self.builder.recipe,
            fresh=self.rollouts is not None and self.rollouts.first_step == self.state.global_step,
        )
        self._write_tokens(batch, stats)
        if self.args.average_tokens_across_devices:
            # Gradients are averaged over ranks, the weights are those of the sum.
            loss = loss * self.accelerator.num_processes
        self.timers.start("backward")
        return (loss, stats) if return_outputs else loss

    def training_step(self, *args: Any, **kwargs: Any) -> Tensor:
        """As in transformers; the time after the loss is that of backward."""
        loss = super().training_step(*args, **kwargs)
        self.timers.stop("backward")
        return loss

    def sum_over_ranks(self, values: Tensor) -> Tensor:
        """Sum of a tensor over all ranks; every one has to call it."""
        if self.accelerator.num_processes == 1:
            return values
        total: Tensor = self.accelerator.reduce(values.to(self.args.device), reduction="sum")
        return total

    def _without_gradient(self, function: Callable[[Any], Any]) -> Any:
        """`function` of the student, inside its wrappers' forward, in eval mode."""

        def inside() -> Any:
            with self.accelerator.autocast():
                return function(self.unwrapped)

        was_training = self.unwrapped.training
        self.unwrapped.eval()
        try:
            with torch.no_grad():
                return run_inside_forward(self.model_wrapped, self.unwrapped, inside)
        finally:
            self.unwrapped.train(was_training)

    # --- evaluation, checkpoints ------------------------------------------------------------------

    def evaluate_examples(self, examples: Sequence[Example] | None = None) -> dict[str, Any] | None:
        """`sdkernels.train.evaluate` with the current weights and this run's settings; None without
        examples.
        """
        examples = self.eval_dataset if examples is None else examples
        if not examples:
            return None
        model = self.unwrapped
        return evaluate(
            model,
            self.processing_class,
            examples,
            k=self.args.num_generations_eval,
            sampling=sampling_of_evaluation(self.args),
            seed=self.args.seed,
            batch_size=self.args.rollout_batch_size,
            template_kwargs=self.args.mapping("chat_template_kwargs"),
            should_stop=self.abandon_if_asked,
        )

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Evaluation by `eval_strategy`: accuracy of sampled answers, not a loss over the data
        set.
        """
        result = self.evaluate_examples(eval_dataset)
        if result is None:
            raise ValueError("eval_dataset is not set, but eval_strategy asks for evaluations")
        names = ("accuracy", "maj_at_k", "completion_length", "markers_per_1k", "entropy")
        metrics = {
            f"{metric_key_prefix}_{name}": float(result[name])
            for name in names
            if result[name] is not None
        }
        self.log(metrics)
        handler: Any = self.callback_handler
        self.control: Any = handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def teacher_state(self) -> dict[str, Tensor]:
        """See `TeacherWeights.state` and `StepSwitches.state`."""
        state = {} if self.teacher is None else self.teacher.state()
        return state | self.step_loss.switches.state()

    def load_teacher_state(self, state: dict[str, Tensor]) -> None:
        """See `TeacherWeights.load_state` and `StepSwitches.load_state`."""
        own, switches = split_state(state)
        self.step_loss.switches.load_state(switches)
        if self.teacher is not None:
            self.teacher.load_state(own)

    def train(self, resume_from_checkpoint: str | bool | None = None, **kwargs: Any) -> Any:
        """See `ResumableTrainer.train`."""
        self._logged_at = time.perf_counter()
        return super().train(resume_from_checkpoint, **kwargs)

    # --- records ----------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step's own numbers to what transformers logs, and write the line of
        metrics.jsonl.
        """
        if "loss" in logs and "learning_rate" in logs:
            line = self._metrics_line(logs)
            if self.is_world_process_zero():
                self.metrics_log.append(line)
            logs |= _flat(line)
        super().log(logs, start_time)

    def _metrics_line(self, logs: dict[str, float]) -> dict[str, Any]:
        values = self.metrics.take(self.accelerator)
        seconds = self.timers.take()
        now = time.perf_counter()
        elapsed, self._logged_at = now - self._logged_at, now
        return {
            "step": self.state.global_step,
            "loss": logs["loss"],
            "grad_norm": logs.get("grad_norm"),
            "learning_rate": logs["learning_rate"],
            **values,
            "num_tokens": int(values["num_tokens"] or 0),
            "marker_count": int(values["marker_count"] or 0),
            "tokens_per_second": (values["num_tokens"] or 0) / elapsed if elapsed > 0 else None,
            "peak_memory_bytes": peak_memory_bytes(),
            "seconds": seconds,
        }

    def _write_tokens(self, batch: MicroBatch, stats: TokenStats) -> None:
        for row in self._shown:
            if any(row is candidate for candidate in batch.rows):
                record = token_record(
                    row,
                    row_columns(batch, dict(stats.items()), row),
                    condition=self.args.label,
                    step=self.state.global_step + 1,
                    encoder=self.builder.student,
                    teacher_encoder=self.builder.teacher,
                )
                self.tokens_log.append(record)


def _narrower(window: int | None, other_model: Any) -> int | None:
    windows = [window, None if other_model is None else context_window(other_model)]
    return min((size for size in windows if size is not None), default=None)


def _flat(line: dict[str, Any]) -> dict[str, float]:
    """What the loggers get: numbers only, the seconds and deciles one by one."""
    flat = {key: value for key, value in line.items() if key not in ("step", "seconds")}
    flat |= {f"seconds_{name}": value for name, value in line["seconds"].items()}
    for name in LISTS:
        flat |= {f"{name}_{at}": value for at, value in enumerate(flat.pop(name) or [])}
    return {key: value for key, value in flat.items() if value is not None}
