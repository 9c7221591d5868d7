"""`use_engine`: no logits, undo, and what it refuses."""

from __future__ import annotations

import types
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import trl_runs as runs
from helpers.tiny_models import tiny_causal_lm
from torch.utils._python_dispatch import TorchDispatchMode

from sdkernels.engine import arguments
from sdkernels.integrations.trl import SUPPORTED_TRL, use_engine

VOCAB = 259
MAKERS = [runs.sdpo, runs.sdft, runs.gkd, runs.gold, runs.distillation, runs.grpo]


class _Largest(TorchDispatchMode):
    """Remembers how many rows of logits the largest result had."""

    rows = 0

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in out if isinstance(out, tuple) else (out,):
            if isinstance(tensor, torch.Tensor) and tensor.dim() and tensor.shape[-1] == VOCAB:
                self.rows = max(self.rows, tensor.numel() // VOCAB)
        return out


@contextmanager
def largest_logits(trainer: Any) -> Iterator[_Largest]:
    """Watches the loss of one micro-batch and its backward pass."""
    seen = _Largest()
    compute = trainer.compute_loss

    def watched(model: Any, inputs: Any, **kwargs: Any) -> Any:
        with seen:
            loss = compute(model, inputs, **kwargs)
            loss.backward()
        return loss.detach().requires_grad_()

    trainer.compute_loss = watched
    yield seen
    del trainer.compute_loss


@pytest.mark.parametrize("maker", MAKERS, ids=lambda maker: maker.__name__)
def test_no_tensor_has_a_row_of_logits_per_token(
    maker: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a budget of one token a chunk, nothing but the head's weight has more than a few rows
    as wide as the vocabulary.
    """
    monkeypatch.setattr(arguments, "default_chunk_bytes", lambda device: 1)
    options = {"full": {"distillation_mode": "full_logits"}}.get(
        "full" if maker in (runs.sdpo, runs.sdft) else "", {}
    )
    trainer = maker(tmp_path, max_steps=1, gradient_accumulation_steps=1, **options)
    use_engine(trainer)
    with largest_logits(trainer) as seen:
        trainer.train()
    # 32 rows: the head's weight, transposed.
    assert seen.rows <= 32


def test_the_check_above_sees_logits(tmp_path: Path) -> None:
    trainer = runs.gkd(tmp_path, max_steps=1, gradient_accumulation_steps=1)
    with largest_logits(trainer) as seen:
        trainer.train()
    assert seen.rows > 32


def test_undo(tmp_path: Path) -> None:
    trainer = runs.gkd(tmp_path)
    before = type(trainer)
    undo = use_engine(trainer)
    assert isinstance(trainer, before)
    assert type(trainer).__name__ == before.__name__
    with pytest.raises(TypeError, match="before"):
        use_engine(trainer)
    trainer.__class__ = type("Other", (type(trainer),), {})
    with pytest.raises(RuntimeError, match="changed after use_engine"):
        undo()
    trainer.__class__ = type(trainer).__mro__[1]
    undo()
    assert type(trainer) is before
    with use_engine(trainer):
        assert type(trainer) is not before
    assert type(trainer) is before


def test_the_model_is_left_as_it_was(tmp_path: Path) -> None:
    trainer = runs.gkd(tmp_path)
    held = trainer.model.__dict__.get("forward")
    use_engine(trainer)
    trainer.train()
    assert trainer.model.__dict__.get("forward") is held
    ids = torch.tensor([[5, 6, 7]])
    assert isinstance(trainer.model(input_ids=ids).logits, torch.Tensor)


@pytest.mark.parametrize("version", ["1.17.0", "1.160.0", "1.1.16"])
def test_other_versions_of_trl_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: str
) -> None:
    import trl

    trainer = runs.gkd(tmp_path)
    monkeypatch.setattr(trl, "__version__", version)
    with pytest.raises(ImportError, match=f"inside TRL {SUPPORTED_TRL}.*{version}"):
        use_engine(trainer)


def test_other_trainers_are_refused() -> None:
    with pytest.raises(TypeError, match=r"SDPOTrainer.*got SimpleNamespace"):
        use_engine(types.SimpleNamespace())


def test_an_override_of_what_is_replaced_is_refused(tmp_path: Path) -> None:
    trainer = runs.gkd(tmp_path)

    class Mine(type(trainer)):  # type: ignore[misc]
        def generalized_jsd_loss(self, *args: Any, **kwargs: Any) -> Any:
            return super().generalized_jsd_loss(*args, **kwargs)

    trainer.__class__ = Mine
    with pytest.raises(TypeError, match=r"Mine.generalized_jsd_loss"):
        use_engine(trainer)


def test_a_subclass_keeps_its_other_methods(tmp_path: Path) -> None:
    trainer = runs.gkd(tmp_path)

    class Doubled(type(trainer)):  # type: ignore[misc]
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            return 2 * super().compute_loss(*args, **kwargs)

    inputs = next(iter(trainer.get_train_dataloader()))
    use_engine(trainer)()
    single = trainer.compute_loss(trainer.model, inputs)
    trainer.__class__ = Doubled
    use_engine(trainer)
    torch.testing.assert_close(trainer.compute_loss(trainer.model, inputs), 2 * single)


def test_an_adapter_on_the_head_is_refused(tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["lm_head"], task_type="CAUSAL_LM")
    trainer = runs.gkd(tmp_path)
    trainer.model = get_peft_model(trainer.model, config)
    with pytest.raises(TypeError, match="Leave lm_head out of target_modules"):
        use_engine(trainer)


@pytest.mark.parametrize(
    ("maker", "name", "options"),
    [
        (runs.gkd, "teacher_model", {}),
        (runs.distillation, "teacher_model", {}),
        (runs.grpo, "ref_model", {"beta": 0.1}),
    ],
    ids=["gkd", "distillation", "grpo"],
)
def test_a_quantised_head_of_the_other_model_is_refused(
    tmp_path: Path, maker: Any, name: str, options: dict[str, Any]
) -> None:
    trainer = maker(tmp_path, runs.saved(tiny_causal_lm(), tmp_path), **options)
    quantised = torch.ao.nn.quantized.dynamic.Linear(32, VOCAB)
    getattr(trainer, name).set_output_embeddings(quantised)
    with pytest.raises(TypeError, match="head: Linear has no weight tensor"):
        use_engine(trainer)


def accelerator(kind: str, processes: int = 1) -> Any:
    return types.SimpleNamespace(
        distributed_type=types.SimpleNamespace(name=kind), num_processes=processes
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"torch_compile": True}, "torch_compile"),
        ({"kind": "DEEPSPEED"}, "DEEPSPEED"),
        ({"kind": "MEGATRON_LM"}, "MEGATRON_LM"),
        ({"kind": "FSDP"}, "FSDP.*DistillationTrainer or GRPOTrainer"),
        ({"processes": 2}, "ddp_find_unused_parameters"),
    ],
)
def test_wrappers_that_are_refused(tmp_path: Path, change: Any, said: str) -> None:
    trainer = runs.gkd(tmp_path)
    trainer.args.torch_compile = "torch_compile" in change
    trainer.accelerator = accelerator(change.get("kind", "NO"), change.get("processes", 1))
    with pytest.raises(ValueError, match=said):
        use_engine(trainer)


@pytest.mark.parametrize("maker", [runs.distillation, runs.grpo], ids=["distillation", "grpo"])
def test_fsdp_is_accepted_where_the_loss_runs_inside_the_forward(
    tmp_path: Path, maker: Any
) -> None:
    trainer = maker(tmp_path)
    trainer.accelerator = accelerator("FSDP")
    use_engine(trainer)


def test_models_with_different_vocabularies_are_refused_by_the_engine(tmp_path: Path) -> None:
    """DistillationTrainer's own check is by tokenizer; TRL would cut the larger one off."""
    trainer = runs.distillation(tmp_path, max_steps=1)
    use_engine(trainer)
    trainer.teacher_model.set_output_embeddings(torch.nn.Linear(16, 264, bias=False).double())
    with pytest.raises(ValueError, match="264"):
        trainer.train()


def test_the_student_may_be_tied(tmp_path: Path) -> None:
    runs.compare(lambda: runs.sdft(tmp_path, tiny_causal_lm(tie_word_embeddings=True)))
