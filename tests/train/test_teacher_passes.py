"""What the teacher says before the loss, against its logits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from helpers.train_rows import CPU, row
from torch import Tensor

from sdkernels.engine import TokenStats
from sdkernels.train.batch import MicroBatch, collate
from sdkernels.train.step_metrics import Timers
from sdkernels.train.teacher import TeacherWeights
from sdkernels.train.teacher_passes import TeacherPasses, TeacherSays

SETTINGS = {"temperature": 0.7, "teacher_temperature": None}


def said(
    model: Any, batch: MicroBatch, *, valid_vocab: int | None = None, **settings: Any
) -> tuple[TeacherSays, TokenStats]:
    passes = TeacherPasses(
        TeacherWeights("live", model),
        contrasts=True,
        valid_vocab=valid_vocab,
        settings=SETTINGS | settings,
    )
    says = passes(batch, Timers(CPU))
    return says, passes.statistics(batch, says.teacher)


def distribution(model: Any, prompt: list[int], response: list[int], temperature: float) -> Tensor:
    """Log-probs over the vocabulary, [L, V]."""
    with torch.no_grad():
        logits = model.eval()(torch.tensor([prompt + response])).logits[0]
    return (logits[len(prompt) - 1 : -1] / temperature).log_softmax(-1)


@pytest.mark.parametrize(("own", "expected"), [(None, 0.7), (1.3, 1.3)])
def test_both_teachers_have_the_teachers_temperature(make_model, own, expected):
    model, rows = make_model(), [row([1, 2], [10, 11], [3], negative_prompt_ids=[[5, 6]])]
    batch = collate(rows, 0, CPU, with_teacher=True)
    says, stats = said(model, batch, teacher_temperature=own)
    response = torch.tensor([[10], [11]])
    second = distribution(model, [5, 6], [10, 11], expected).gather(-1, response)[:, 0]
    torch.testing.assert_close(says.second_logp_N, second, rtol=1e-4, atol=1e-5)
    first = distribution(model, [3], [10, 11], expected)
    logp = first.gather(-1, response)[:, 0]
    torch.testing.assert_close(stats.teacher_logp, logp, rtol=1e-4, atol=1e-5)
    entropy = -(first.exp() * first).sum(-1)
    torch.testing.assert_close(stats.teacher_entropy, entropy, rtol=1e-4, atol=1e-5)


def test_a_row_without_a_contrast_says_so(make_model):
    rows = [row([4], [12], [6]), row([1, 2], [10, 11], [3], negative_prompt_ids=[[5]])]
    says, _ = said(make_model(), collate(rows, 0, CPU, with_teacher=True))
    assert says.second_logp_N.isnan().tolist() == [True, False, False]


def test_padding_of_the_vocabulary_stays_out(make_model):
    batch = collate([row([1, 2], [10, 11], [3])], 0, CPU, with_teacher=True)
    says, stats = said(make_model(), batch, valid_vocab=20)
    assert says.teacher.head.vocab == 20
    log_t = (distribution(make_model(), [3], [10, 11], 1.0)[:, :20] / 0.7).log_softmax(-1)
    entropy = -(log_t.exp() * log_t).sum(-1)
    torch.testing.assert_close(stats.teacher_entropy, entropy, rtol=1e-4, atol=1e-5)
