"""Whose weights the teacher runs with: `TeacherWeights` and its kinds.

frozen    a copy of the student as it was before training
ema       teacher <- (1 - r) * teacher + r * student after every optimiser step
live      the student itself, without gradient
lora_off  the student without its LoRA adapter
snapshot  a copy of the student, renewed every N optimiser steps
trust_region  a frozen copy and the live student, both with the teacher's prompt: logits mixed
external  another model with the same vocabulary

All of them run in eval mode under no_grad. The privileged context is not theirs: it is in the
prompt.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from sdkernels.train.errors import CheckpointError

FINGERPRINT_TOLERANCE = 1e-9


class TeacherWeights:
    """The teacher's model of one run.

    Args:
        kind: see the module.
        student: the student before training, unwrapped (a PEFT model is welcome).
        model: the teacher of kind `external`, or a frozen copy that several runs share.
        update_rate: r of `ema`; the student's share of `trust_region`.
        sync_steps: N of `snapshot`.

    Raises:
        ValueError: the kind does not go with the model (lora_off without an adapter, EMA of
            adapters other than LoRA).
    """

    def __init__(
        self,
        kind: str,
        student: Any,
        *,
        model: Any = None,
        update_rate: float = 0.05,
        sync_steps: int = 10,
    ) -> None:
        self.kind = kind
        self.update_rate = update_rate
        self.sync_steps = sync_steps
        self._student = student
        if kind == "lora_off" and not is_peft(student):
            raise ValueError(
                "teacher_model_kind='lora_off' needs a student with a LoRA adapter: set "
                "use_peft=true, or "
                "teacher_model_kind='frozen'"
            )
        if kind == "external" and model is None:
            raise ValueError("teacher_model_kind='external' needs the teacher's model")
        self.model = model if model is not None else self._copy_of_student()
        # Slow averages vanish in bf16: one step of rate .01 is below its resolution of 2^-8.
        self._master: dict[str, Tensor] = {}
        if kind == "ema":
            self._master = {
                name: tensor.float().clone()
                for name, tensor in self._own_parameters().items()
                if tensor.dtype in (torch.bfloat16, torch.float16)
            }

    @property
    def is_student(self) -> bool:
        """Whether the student's own module runs, so that it may be wrapped or sharded with it."""
        return self.kind in ("live", "lora_off")

    @property
    def network(self) -> Any:
        """The causal language model to run, unwrapped of adapters that are merged or switched
        off.
        """
        return self._student if self.model is None else self.model

    @contextlib.contextmanager
    def active(self) -> Iterator[Any]:
        """The teacher's model, in eval mode and without gradient, adapter switched off where the
        kind says so.
        """
        off = self.network.disable_adapter() if self.kind == "lora_off" else None
        with _at_rest(self.network), off or contextlib.nullcontext():
            yield self.network

    @contextlib.contextmanager
    def active_student(self) -> Iterator[Any]:
        """The student as it is, in eval mode and without gradient."""
        with _at_rest(self._student):
            yield self._student

    def after_step(self, step: int) -> None:
        """Follow the student once the optimiser has made step number `step` (from 1)."""
        if self.kind == "ema":
            self._blend(self.update_rate)
        elif self.kind == "snapshot" and step % self.sync_steps == 0:
            self._blend(1.0)

    def state(self) -> dict[str, Tensor]:
        """Tensors that a checkpoint needs: the weights where they change, else a fingerprint of
        them.
        """
        if self.kind in ("ema", "snapshot"):
            return {
                name: tensor.contiguous()
                for name, tensor in (self._own_parameters() | self._master).items()
            }
        if self.is_student:
            return {}
        return {"fingerprint": fingerprint(self.model)}

    def load_state(self, state: dict[str, Tensor]) -> None:
        """Take over what `state` gave.

        Raises:
            CheckpointError: the checkpoint is of another kind, or its frozen teacher had other
                weights.
        """
        if self.is_student:
            return
        if self.kind in ("ema", "snapshot"):
            self._restore(state)
            return
        if "fingerprint" not in state:
            raise CheckpointError(
                f"the checkpoint was written with another teacher_model_kind than {self.kind!r}; "
                "resume with the settings "
                "of the run folder's config.yaml"
            )
        ours, theirs = fingerprint(self.model), state["fingerprint"]
        if not torch.allclose(ours, theirs, rtol=FINGERPRINT_TOLERANCE, atol=0.0):
            raise CheckpointError(
                "the frozen teacher is not the one the checkpoint was written with: start from the "
                "same "
                "model_name_or_path as the first time (not from the checkpoint), or the same "
                "external teacher"
            )

    def _copy_of_student(self) -> Any:
        if self.is_student:
            return None
        if is_peft(self._student):
            # Merging needs the adapter's weights in place, so the copy comes first.
            model = copy.deepcopy(self._student).merge_and_unload()
        else:
            model = copy.deepcopy(self._student)
        return model.eval().requires_grad_(False)

    def _own_parameters(self) -> dict[str, Tensor]:
        return {name: parameter.data for name, parameter in self.model.named_parameters()}

    @torch.no_grad()
    def _blend(self, rate: float) -> None:
        """Move the teacher the share `rate` of the way to the student."""
        ours = self._own_parameters()
        for name, tensor in effective_parameters(self._student):
            mine = ours[name]
            exact = self._master.get(name, mine)
            exact.lerp_(tensor.to(exact.device, exact.dtype), rate)
            if exact is not mine:
                mine.copy_(exact)

    @torch.no_grad()
    def _restore(self, state: dict[str, Tensor]) -> None:
        ours = self._own_parameters()
        if set(state) != set(ours):
            raise CheckpointError(
                f"the checkpoint's teacher weights are not those of a {self.kind!r} teacher of "
                "this model; resume with the "
                "settings of the run folder's config.yaml"
            )
        for name, mine in ours.items():
            saved = state[name]
            if name in self._master:
                self._master[name].copy_(saved)
            mine.copy_(saved)


@contextlib.contextmanager
def _at_rest(network: Any) -> Iterator[None]:
    """`network` in eval mode, without gradient."""
    was_training = network.training
    network.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        network.train(was_training)


def is_peft(model: Any) -> bool:
    """Whether `model` is a PEFT model (without importing PEFT)."""
    return hasattr(model, "peft_config") and hasattr(model, "disable_adapter")


def effective_parameters(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Names and values of the parameters of `model`, LoRA updates merged in.

    Averaging the factors A and B of an adapter would not average their product, so a teacher
    follows the product. Shared parameters (tied embeddings) come once.

    Raises:
        ValueError: an adapter that is not LoRA on a linear layer.
    """
    if not is_peft(model):
        yield from ((name, _whole(parameter.data)) for name, parameter in model.named_parameters())
        return
    inner = model.get_base_model()
    layers = {
        name: module for name, module in inner.named_modules() if hasattr(module, "base_layer")
    }
    for name, parameter in inner.named_parameters():
        owner = next((prefix for prefix in layers if name.startswith(prefix + ".")), None)
        if owner is None:
            yield name, _whole(parameter.data)
        elif ".base_layer." in name:
            merged = _merged(layers[owner], name, parameter.data)
            yield name.replace(".base_layer", ""), _whole(merged)


def _whole(tensor: Any) -> Tensor:
    """A parameter that FSDP2 sharded, gathered: every rank has to get here."""
    whole: Tensor = tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
    return whole


def _merged(layer: Any, name: str, tensor: Tensor) -> Tensor:
    if not name.endswith("base_layer.weight"):
        return tensor
    if not hasattr(layer, "get_delta_weight"):
        raise ValueError(
            f"{name}: only LoRA adapters on linear layers can be followed by an EMA or snapshot "
            "teacher"
        )
    for adapter in layer.active_adapters:
        tensor = tensor + layer.get_delta_weight(adapter).to(tensor.dtype)
    return tensor


def fingerprint(model: nn.Module) -> Tensor:
    """Sum and absolute sum of all parameters, float64 `[2]` on the CPU: enough to tell two
    checkpoints apart.
    """
    total = torch.zeros(2, dtype=torch.float64)
    for parameter in model.parameters():
        values = parameter.detach().double()
        total += torch.stack([values.sum(), values.abs().sum()]).cpu()
    return total


def check_vocabulary(
    student: Any,
    student_tokenizer: Any,
    teacher: Any,
    teacher_tokenizer: Any,
    valid_vocab: int | None,
) -> None:
    """Refuse a teacher whose ids mean something else, or whose head has another size.

    Raises:
        ValueError: what differs, and whether `valid_vocab` settles it.
    """
    ours, theirs = student_tokenizer.get_vocab(), teacher_tokenizer.get_vocab()
    if ours != theirs:
        differing = [
            token for token in ours.keys() | theirs.keys() if ours.get(token) != theirs.get(token)
        ]
        sample = min(differing, key=lambda token: (ours.get(token, 1 << 60), token))
        raise ValueError(
            f"the teacher's tokenizer is another one: {len(differing)} tokens differ, e.g. "
            f"{sample!r} is id "
            f"{ours.get(sample)} for the student and {theirs.get(sample)} for the teacher; "
            "per-token distillation needs "
            "the same vocabulary"
        )
    rows = [model.get_output_embeddings().weight.shape[0] for model in (student, teacher)]
    if rows[0] != rows[1] and valid_vocab is None:
        raise ValueError(
            f"the student's head has {rows[0]} rows, the teacher's {rows[1]}, with the same "
            f"tokenizer of {len(ours)} "
            f"tokens: the rest is padding; set valid_vocab={len(ours)} to leave it out"
        )
