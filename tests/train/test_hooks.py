"""The line of a step on the terminal."""

from __future__ import annotations

from types import SimpleNamespace

from transformers.trainer_callback import PrinterCallback, ProgressCallback

from sdkernels.train.hooks import CompactPrinter, CompactProgress, one_line
from sdkernels.train.trainer import SelfDistillTrainer

LOGS = {"loss": 0.25, "gap": -0.5, "grad_norm": 1.0, "completion_length": 30.2, "epoch": 1}


def test_one_line_a_step():
    assert one_line(3, LOGS) == "step 3: loss 0.2500, gap -0.500, length 30"
    assert one_line(3, {"train_runtime": 3.0}) == ""
    assert one_line(3, {"loss": 0.1, "gap": None}) == "step 3: loss 0.1000"


def test_only_rank_0_writes(capsys):
    for zero in (True, False):
        state = SimpleNamespace(is_world_process_zero=zero, global_step=1)
        CompactPrinter().on_log(None, state, None, logs=LOGS)
    assert capsys.readouterr().out.count("step 1") == 1


def test_transformers_own_progress_is_replaced(make_model, make_config, make_problems, tokenizer):
    for quiet, kind in ((True, CompactPrinter), (False, CompactProgress)):
        trainer = SelfDistillTrainer(
            make_model(), make_config(disable_tqdm=quiet), make_problems(2), tokenizer
        )
        kinds = [type(callback) for callback in trainer.callback_handler.callbacks]
        assert kind in kinds
        assert ProgressCallback not in kinds
        assert PrinterCallback not in kinds
