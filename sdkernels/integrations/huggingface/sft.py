"""`FusedSFTTrainer`: supervised fine-tuning with log-prob and entropy of every label, no logits.

Shape letters: B sequences, L positions, D hidden, V vocabulary, N labels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import Trainer

from sdkernels.engine import token_loss
from sdkernels.integrations.deferred import backbone_of, head_as_computed, innermost
from sdkernels.integrations.huggingface.causal_lm import check_model
from sdkernels.train.forward import run_inside_forward


class FusedSFTTrainer(Trainer):
    """`Trainer` whose loss is the mean of -log S(label) - entropy_bonus * H(S) over labels.

    Logs `logprob` and `entropy` (means over labels since the last log line, nats; with the prefix
    of its metrics for an evaluation). The loss runs inside the wrapped model's forward, so DDP and
    FSDP2 see it. With `compute_metrics`, evaluation uses the model's own forward, since metrics
    read logits; the loss is the same there.

    Args:
        entropy_bonus: factor of the entropy, nats per nat; 0 is plain fine-tuning.
        args, kwargs: as in `Trainer`.

    Raises:
        TypeError, ValueError: a head or architecture that `LMHead.from_model` refuses, prompt
            learning, label smoothing, a `compute_loss_func`, a loss of the model's own, or a
            mixture of experts with its balancing loss.
    """

    # Divided by the labels of the whole step here, so Trainer must not divide again.
    loss_is_scaled_for_ga = True

    def __init__(self, *args: Any, entropy_bonus: float = 0.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.entropy_bonus = entropy_bonus
        # Its signature decides whether Trainer counts the labels of a step.
        self.model_accepts_loss_kwargs = True
        self._sums: dict[str, list[Tensor]] = {"train": [], "eval": []}
        check_model(innermost(self.model))
        adapter = getattr(self.model, "active_peft_config", None)
        if getattr(adapter, "is_prompt_learning", False):
            raise ValueError(
                "prompt learning puts virtual tokens into the model's own forward, which is not "
                "run; use LoRA, or transformers' Trainer"
            )
        if self.args.label_smoothing_factor:
            raise ValueError(
                f"label_smoothing_factor={self.args.label_smoothing_factor}: set it to 0, or use "
                "sdkernels.integrations.liger.LigerFusedLinearCrossEntropyLoss in an own trainer"
            )
        if self.compute_loss_func is not None:
            raise ValueError("compute_loss_func reads logits, which are not made: leave it out")

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: Tensor | int | None = None,
    ) -> Any:
        """Loss of a micro-batch: sum over its labels by `num_items_in_batch`, or their mean."""
        outputs = None
        if return_outputs:
            outputs = model(**inputs)
            logits_BLV = outputs["logits"] if isinstance(outputs, dict) else outputs[1]
            total, sums = self._sums_of_logits(logits_BLV, inputs["labels"])
        else:
            unwrapped = self.accelerator.unwrap_model(model)
            total, sums = run_inside_forward(
                model, unwrapped, lambda: self._sums_of_model(innermost(unwrapped), inputs)
            )
        self._sums["train" if model.training else "eval"].append(sums)
        loss = self._normalise(total, sums[2], num_items_in_batch)
        return (loss, outputs) if return_outputs else loss

    def _sums_of_model(self, inner: Any, inputs: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """The summed loss, and `[3]`: sums of log-prob and entropy, and the number of labels."""
        inputs = dict(inputs)
        labels_BL, mask_BL = _shifted(inputs.pop("labels"))
        with self.accelerator.autocast():
            hidden_BLD = backbone_of(inner)(**inputs, use_cache=False).last_hidden_state
            head = head_as_computed(inner, hidden_BLD.device.type)
        total, stats = token_loss(
            hidden_BLD.to(head.weight.dtype),
            head,
            lambda s, tok: -s.logp - self.entropy_bonus * s.entropy,
            targets=labels_BL,
            mask=mask_BL,
        )
        return total, _stack(stats.logp, stats.entropy, mask_BL)

    def _sums_of_logits(self, logits_BLV: Tensor, labels_BL: Tensor) -> tuple[Tensor, Tensor]:
        """The same from logits that are there anyway."""
        labels_BL, mask_BL = _shifted(labels_BL)
        logp_NV = logits_BLV[mask_BL].float().log_softmax(-1)
        logp_N = logp_NV.gather(-1, labels_BL[mask_BL].unsqueeze(-1)).squeeze(-1)
        entropy_N = torch.special.entr(logp_NV.exp()).sum(-1)
        total = -(logp_N + self.entropy_bonus * entropy_N).sum()
        return total, _stack(logp_N, entropy_N, mask_BL).detach()

    def _normalise(self, total: Tensor, labels: Tensor, count: Tensor | int | None) -> Tensor:
        if count is None:
            return total / labels.clamp(min=1)
        # A step without a label is 0, not 0 / 0.
        count = torch.as_tensor(count, device=total.device).clamp(min=1)
        # The count is that of all processes, over which gradients are averaged.
        world = self.accelerator.num_processes if self.args.average_tokens_across_devices else 1
        return total * world / count

    def prediction_step(
        self,
        model: Any,
        inputs: dict[str, Any],
        prediction_loss_only: bool,
        ignore_keys: list[str] | None = None,
    ) -> Any:
        """Without metrics to compute, evaluation needs no logits either."""
        if not prediction_loss_only:
            return super().prediction_step(model, inputs, prediction_loss_only, ignore_keys)
        inputs = self._prepare_inputs(inputs)
        count = self._get_num_items_in_batch([inputs], self.args.device)
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs, num_items_in_batch=count)
        return loss.detach(), None, None

    def evaluation_loop(
        self,
        dataloader: Any,
        description: str,
        prediction_loss_only: bool | None = None,
        ignore_keys: list[str] | None = None,
        metric_key_prefix: str = "eval",
    ) -> Any:
        """Add `<prefix>_logprob` and `<prefix>_entropy` to the metrics, `predict`'s too."""
        self._sums["eval"] = []
        output = super().evaluation_loop(
            dataloader, description, prediction_loss_only, ignore_keys, metric_key_prefix
        )
        output.metrics.update(self._means("eval", f"{metric_key_prefix}_"))
        return output

    def log(self, logs: dict[str, float], *args: Any, **kwargs: Any) -> None:
        """Add `logprob` and `entropy`, means over the labels since the last line of training."""
        # The lines of steps and of the end; any prefix may stand before an evaluation's names.
        if "loss" in logs or "total_flos" in logs:
            logs.update(self._means("train", ""))
        super().log(logs, *args, **kwargs)

    def _means(self, kind: str, prefix: str) -> dict[str, float]:
        """Means over the labels since the last call, of all processes."""
        found, self._sums[kind] = self._sums[kind], []
        # Every process logs and evaluates at the same steps, so this collective call is matched.
        if not found:
            return {}
        logp, entropy, labels = self.accelerator.reduce(torch.stack(found).sum(0)).tolist()
        count = max(labels, 1.0)
        return {f"{prefix}logprob": logp / count, f"{prefix}entropy": entropy / count}


def _shifted(labels_BL: Tensor) -> tuple[Tensor, Tensor]:
    """The label that each position predicts, and where there is one."""
    shifted_BL = torch.nn.functional.pad(labels_BL, (0, 1), value=-100)[..., 1:]
    return shifted_BL, shifted_BL != -100


def _stack(logp: Tensor, entropy: Tensor, mask_BL: Tensor) -> Tensor:
    return torch.stack([logp.sum(), entropy.sum(), mask_BL.sum().to(logp.dtype)])
