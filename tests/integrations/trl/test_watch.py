"""A subclass that computes its loss elsewhere is refused; one that calls on is honoured."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import trl_runs as runs

from sdkernels.integrations.trl import use_engine

BYPASSES = [
    (runs.sdpo, "compute_loss"),
    (runs.sdft, "compute_loss"),
    (runs.gkd, "compute_loss"),
    (runs.gold, "compute_loss"),
    (runs.distillation, "_compute_loss"),
    (runs.distillation, "compute_loss"),
    (runs.grpo, "_get_per_token_logps_and_entropies"),
    (runs.grpo, "_compute_loss"),
]


def own_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
    """A loss from the model's parameters alone, in the shape that the caller expects."""
    loss = sum(parameter.square().sum() for parameter in self.model.parameters())
    return (loss, loss.detach(), torch.ones(())) if len(args) == 3 else loss


def own_logps(self: Any, model: Any, ids: Any, mask: Any, keep: int, *_: Any, **__: Any) -> Any:
    logp = model(input_ids=ids, attention_mask=mask).logits.log_softmax(-1)
    logp = logp[:, -keep - 1 : -1].gather(-1, ids[:, -keep:, None]).squeeze(-1)
    return logp, torch.zeros_like(logp), None


@pytest.mark.parametrize(("maker", "name"), BYPASSES, ids=lambda v: getattr(v, "__name__", v))
def test_a_loss_that_passes_the_engine_by_is_refused(maker: Any, name: str, tmp_path: Path) -> None:
    trainer = maker(tmp_path, max_steps=1, gradient_accumulation_steps=1)
    method = own_logps if name.startswith("_get") else own_loss
    trainer.__class__ = type("Mine", (type(trainer),), {name: method})
    use_engine(trainer)
    with pytest.raises(TypeError, match=rf"Mine came to its loss.*here: Mine\.{name}\)"):
        trainer.train()


def test_a_method_set_on_the_trainer_is_named(tmp_path: Path) -> None:
    trainer = runs.gkd(tmp_path, max_steps=1, gradient_accumulation_steps=1)
    trainer.generalized_jsd_loss = lambda **_: trainer.model.lm_head.weight.sum()
    use_engine(trainer)
    with pytest.raises(TypeError, match="the trainer's own generalized_jsd_loss"):
        trainer.train()


@pytest.mark.parametrize("maker", [runs.distillation, runs.grpo], ids=["distillation", "grpo"])
def test_an_override_that_calls_on_is_honoured(maker: Any, tmp_path: Path) -> None:
    calls: list[int] = []
    trainer = maker(tmp_path, max_steps=1, gradient_accumulation_steps=1)

    class Mine(type(trainer)):  # type: ignore[misc]
        def _compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return super()._compute_loss(*args, **kwargs)

    trainer.__class__ = Mine
    use_engine(trainer)
    trainer.train()
    assert calls == [1]


@pytest.mark.parametrize("maker", [runs.distillation, runs.grpo], ids=["distillation", "grpo"])
def test_a_loss_in_another_thread_is_honoured(maker: Any, tmp_path: Path) -> None:
    """As under nn.DataParallel: a new thread has none of the context of this one."""
    trainer = maker(tmp_path, max_steps=1, gradient_accumulation_steps=1)

    class Mine(type(trainer)):  # type: ignore[misc]
        def _compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            with ThreadPoolExecutor(1) as pool:
                return pool.submit(super()._compute_loss, *args, **kwargs).result()

    trainer.__class__ = Mine
    use_engine(trainer)
    trainer.train()
    assert "_engine_calls" not in vars(trainer)
