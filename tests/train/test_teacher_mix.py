"""The trust-region teacher against interpolated logits."""

from __future__ import annotations

import pytest
import torch

from sdkernels.engine import HiddenTeacher, LMHead, token_stats
from sdkernels.train.teacher_mix import mixed_teacher


def teacher(hidden_size: int, *, seed: int, bias: bool = False, **settings) -> HiddenTeacher:
    random = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=random, dtype=torch.float64)

    head = LMHead(normal(11, hidden_size), normal(11) if bias else None, **settings)
    return HiddenTeacher(normal(4, hidden_size), head)


def logits(part: HiddenTeacher) -> torch.Tensor:
    raw = part.hidden @ part.head.weight.T
    raw = raw if part.head.bias is None else raw + part.head.bias
    return (part.head.scale * raw)[:, : part.head.vocab]


@pytest.mark.parametrize("biases", [(False, False), (True, False), (True, True)])
@pytest.mark.parametrize("share", [0.05, 0.6])
def test_it_is_the_log_linear_mix(biases, share):
    reference = teacher(5, seed=0, bias=biases[0], scale=0.7)
    student = teacher(7, seed=1, bias=biases[1], scale=1.3)
    log_q = (1 - share) * logits(reference).log_softmax(-1) + share * logits(student).log_softmax(
        -1
    )
    expected = log_q.log_softmax(-1)
    mixed = mixed_teacher(reference, student, share)
    torch.testing.assert_close(logits(mixed).log_softmax(-1), expected)
    # Through the engine, at a temperature, where it divides the mixed logits.
    hot = (log_q / 1.1).log_softmax(-1)
    stats = token_stats(mixed.hidden, mixed.head, temperature=1.1)
    torch.testing.assert_close(stats.entropy, -(hot.exp() * hot).sum(-1))


def test_equal_models_mix_to_themselves():
    one = teacher(5, seed=3)
    torch.testing.assert_close(logits(mixed_teacher(one, one, 0.3)), logits(one))


def test_padding_of_the_vocabulary_stays_out():
    reference, student = teacher(5, seed=0, valid_vocab=9), teacher(5, seed=1, valid_vocab=9)
    assert mixed_teacher(reference, student, 0.5).head.vocab == 9


def test_refused():
    one = teacher(5, seed=3)
    with pytest.raises(ValueError, match=r"softcap=30.0; use 'ema'"):
        mixed_teacher(teacher(5, seed=0, softcap=30.0), one, 0.5)
    with pytest.raises(ValueError, match="vocabularies of 9 and 11"):
        mixed_teacher(teacher(5, seed=0, valid_vocab=9), one, 0.5)
    with pytest.raises(ValueError, match=r"teacher_update_rate=1.0.*'live'"):
        mixed_teacher(one, one, 1.0)
