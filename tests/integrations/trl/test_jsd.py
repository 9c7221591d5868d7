"""GKD and GOLD with the engine train as they do without it."""

from pathlib import Path
from typing import Any

import pytest
import torch
from helpers import trl_runs as runs
from helpers.tiny_models import tiny_causal_lm

from sdkernels.integrations.trl import jsd, use_engine


@pytest.mark.parametrize(
    "options",
    [{"beta": 0.0, "lmbda": 1.0}, {"beta": 0.3}, {"beta": 1.0, "seq_kd": True, "lmbda": 0.0}],
    ids=lambda options: " ".join(f"{k}={v}" for k, v in options.items()),
)
def test_gkd(tmp_path: Path, options: dict[str, Any]) -> None:
    runs.compare(lambda: runs.gkd(tmp_path, **options))


def test_gkd_with_softcap_scale_and_tied_heads(tmp_path: Path) -> None:
    def make() -> Any:
        student = tiny_causal_lm("Gemma3", tie_word_embeddings=True)
        return runs.gkd(tmp_path, student, tiny_causal_lm("Cohere", seed=1))

    runs.compare(make)


def test_gkd_with_a_resized_vocabulary(tmp_path: Path) -> None:
    def make() -> Any:
        models = [tiny_causal_lm(seed=seed) for seed in (0, 1)]
        for model in models:
            model.resize_token_embeddings(264)
        return runs.gkd(tmp_path, *models)

    runs.compare(make)


@pytest.mark.parametrize(
    "options",
    [{"beta": 0.0, "temperature": 0.8}, {"beta": 0.5, "temperature": 1.3, "lmbda": 0.0}],
    ids=lambda options: " ".join(f"{k}={v}" for k, v in options.items()),
)
def test_gold_with_one_tokenizer(tmp_path: Path, options: dict[str, Any]) -> None:
    runs.compare(lambda: runs.gold(tmp_path, **options))


def test_gold_with_two_tokenizers_is_refused(tmp_path: Path) -> None:
    trainer = runs.gold(tmp_path)
    trainer.use_uld_loss, trainer.teacher_tokenizer = True, trainer.processing_class
    with pytest.raises(ValueError, match="use_uld_loss=True"):
        use_engine(trainer)


def test_outputs_have_logits_where_they_are_asked_for(tmp_path: Path) -> None:
    trainer = runs.gkd(tmp_path)
    use_engine(trainer)
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    loss, outputs = trainer.compute_loss(trainer.model, inputs, return_outputs=True)
    assert isinstance(outputs.logits, torch.Tensor)
    torch.testing.assert_close(trainer.compute_loss(trainer.model, inputs), loss)


def test_evaluation_is_the_same(tmp_path: Path) -> None:
    trainer = runs.gkd(tmp_path)
    trainer.eval_dataset = trainer.train_dataset
    before = trainer.evaluate()["eval_loss"]
    use_engine(trainer)
    assert trainer.evaluate()["eval_loss"] == pytest.approx(before, rel=1e-6)


@pytest.mark.parametrize("maker", [runs.gkd, runs.gold], ids=["gkd", "gold"])
def test_a_batch_without_labels_has_loss_zero(tmp_path: Path, maker: Any) -> None:
    trainer = maker(tmp_path)
    use_engine(trainer)
    inputs = trainer._prepare_inputs(next(iter(trainer.get_train_dataloader())))
    inputs["labels"] = torch.full_like(inputs["labels"], -100)
    loss = trainer.compute_loss(trainer.model, inputs)
    loss.backward()
    assert loss == 0
    assert trainer.model.lm_head.weight.grad.abs().max() == 0


@pytest.mark.parametrize("maker", [runs.gkd, runs.gold], ids=["gkd", "gold"])
def test_both_models_run_in_autocast(
    tmp_path: Path, maker: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []
    token_loss = jsd.token_loss

    def noted(hidden: Any, head: Any, *args: Any, teacher: Any, **kwargs: Any) -> Any:
        seen.extend([hidden.dtype, teacher.hidden.dtype, teacher.head.weight.dtype])
        return token_loss(hidden, head, *args, teacher=teacher, **kwargs)

    monkeypatch.setattr(jsd, "token_loss", noted)
    models = [tiny_causal_lm(seed=seed).float() for seed in (0, 1)]
    trainer = maker(tmp_path, *models, bf16=True, max_steps=1, gradient_accumulation_steps=1)
    use_engine(trainer)
    trainer.train()
    assert set(seen) == {torch.bfloat16}


def test_gold_of_a_vision_language_model_is_refused(tmp_path: Path) -> None:
    trainer = runs.gold(tmp_path)
    trainer._is_vlm = True
    with pytest.raises(ValueError, match="vision-language"):
        use_engine(trainer)
