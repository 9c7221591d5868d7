import math
from types import SimpleNamespace

import pytest
import torch

from sdkernels.recipes.evidence import (
    contrast_evidence,
    has_contrast,
    linear_decay,
    shaped_advantage,
    teacher_evidence,
)


def column(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


def stats(**columns: torch.Tensor) -> SimpleNamespace:
    return SimpleNamespace(**columns)


@pytest.mark.parametrize(
    ("adv", "evidence", "expected"),
    [
        (1.0, math.log(1.1), 1.05),  # liked by the teacher, good rollout: more credit
        (1.0, math.log(0.9), 0.95),
        (-1.0, math.log(1.25), -0.9),  # liked, bad rollout: less blame (1 / 1.25 = 0.8)
        (-1.0, math.log(0.5), -1.1),  # disliked, bad rollout: more blame, clipped at 1.2
        (2.0, 20.0, 2.2),
        (2.0, -20.0, 1.8),
        (0.0, 3.0, 0.0),
    ],
)
def test_shaped_advantages_by_hand(adv: float, evidence: float, expected: float) -> None:
    shaped = shaped_advantage(column(adv), column(evidence), 0.5, 0.2)
    assert shaped.item() == pytest.approx(expected)


def test_the_sign_of_an_advantage_never_changes() -> None:
    adv = column(1.0, -1.0, 1.0, -1.0)
    shaped = shaped_advantage(adv, column(-50.0, 50.0, 50.0, -50.0), 1.0, 1.0)
    assert shaped.tolist() == pytest.approx([0.0, 0.0, 2.0, -2.0])
    assert (shaped * adv >= 0).all()


def test_evidence_is_bounded_and_silent_without_a_signal() -> None:
    s = stats(teacher_logp=column(-1.0, -90.0, -1.0), logp=column(-2.0, -1.0, -90.0))
    assert teacher_evidence(s, stats()).tolist() == [1.0, -20.0, 20.0]
    assert teacher_evidence(s, stats(signal=column(1, 0, 0))).tolist() == [1.0, 0.0, 0.0]
    old = stats(old_logp=column(-1.5, -1.0, -1.0))
    assert teacher_evidence(s, old, "old").tolist() == [0.5, -20.0, 0.0]


def test_contrast_without_a_second_teacher_is_0() -> None:
    s = stats(teacher_logp=column(-1.0, -1.0, -math.inf, -50.0, -1.0), logp=column(0, 0, 0, 0, 0))
    tok = stats(second_teacher_logp=column(-1.5, math.nan, -math.inf, -1.0, -2.0))
    assert contrast_evidence(s, tok).tolist() == [0.5, 0.0, 0.0, -20.0, 1.0]
    assert has_contrast(tok).tolist() == [True, False, False, True, True]
    tok.signal = column(1, 1, 1, 1, 0)
    assert contrast_evidence(s, tok).tolist() == [0.5, 0.0, 0.0, -20.0, 0.0]


def test_linear_decay() -> None:
    decay = linear_decay(50)
    assert decay is not None
    assert [decay(step) for step in (0, 25, 50, 80)] == [1.0, 0.5, 0.0, 0.0]
    assert linear_decay(None) is None
