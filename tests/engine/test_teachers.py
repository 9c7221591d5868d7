"""Teachers: what they accept and refuse, and that nothing flows into them."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor

import sdkernels as sd
from sdkernels.testing import assert_exact

T, D, V, K = 6, 4, 9, 3
GENERATOR = torch.Generator().manual_seed(0)
HIDDEN = torch.randn(T, D, generator=GENERATOR, dtype=torch.float64)
WEIGHT = torch.randn(V, D, generator=GENERATOR, dtype=torch.float64)
TEACHER_HIDDEN = torch.randn(T, D, generator=GENERATOR, dtype=torch.float64)
LOGITS = TEACHER_HIDDEN @ WEIGHT.t()
SERVED = LOGITS.log_softmax(-1).topk(K, dim=-1)


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: sd.HiddenTeacher(HIDDEN.clone().requires_grad_(), WEIGHT),
            ValueError,
            "teacher.hidden requires grad, but no gradient is sent into a teacher: compute it "
            "under torch.no_grad() or pass it .detach()-ed",
        ),
        (
            lambda: sd.HiddenTeacher(HIDDEN.long(), WEIGHT),
            TypeError,
            "expected a floating dtype, got ",
        ),
        (
            lambda: sd.HiddenTeacher([1.0], WEIGHT),
            TypeError,
            "teacher.hidden: expected a tensor, got",
        ),
        (
            lambda: sd.HiddenTeacher(HIDDEN[:, :3], WEIGHT),
            ValueError,
            "teacher.hidden: expected [..., D] with D = 4 of its head, got [6, 3]",
        ),
        (
            lambda: sd.HiddenTeacher(HIDDEN, None),
            TypeError,
            "teacher.head: expected an LMHead, a weig",
        ),
        (
            lambda: sd.LogitsTeacher(LOGITS.clone().requires_grad_()),
            ValueError,
            "teacher.logits requires grad",
        ),
        (
            lambda: sd.LogitsTeacher(LOGITS.long()),
            TypeError,
            "teacher.logits: expected a floating dty",
        ),
        (
            lambda: sd.LogitsTeacher(LOGITS[:, :0]),
            ValueError,
            "teacher.logits: expected [..., V], got",
        ),
        (
            lambda: sd.LogitsTeacher(LOGITS, valid_vocab=10),
            ValueError,
            "valid_vocab=10: expected a whole number from 1 to V = 9, or None",
        ),
        (
            lambda: sd.TopKTeacher([[1]], SERVED.values),
            TypeError,
            "teacher.ids: expected int64 or int",
        ),
        (
            lambda: sd.TopKTeacher(SERVED.values, SERVED.values),
            TypeError,
            "teacher.ids: expected int64 or int32 ids, got torch.float64",
        ),
        (
            lambda: sd.TopKTeacher(SERVED.indices, [[-1.0]]),
            TypeError,
            "teacher.logprobs: expected a tensor, got list",
        ),
        (
            lambda: sd.TopKTeacher(SERVED.indices, SERVED.values.clone().requires_grad_()),
            ValueError,
            "teacher.logprobs requires grad",
        ),
        (
            lambda: sd.TopKTeacher(SERVED.indices, SERVED.values[:, :2]),
            ValueError,
            "expected ids and logprobs of one shape [..., K], got [6, 3] and [6, 2]",
        ),
        (
            lambda: sd.TopKTeacher(SERVED.indices[:, :0], SERVED.values[:, :0]),
            ValueError,
            "of one shape [..., K], got [6, 0]",
        ),
        (
            lambda: sd.TopKTeacher(SERVED.indices, SERVED.values + 9.0),
            ValueError,
            "teacher.logprobs: expected log-probs <= 0, got ",
        ),
        (
            lambda: sd.TopKTeacher(SERVED.indices * 0, SERVED.values),
            ValueError,
            "teacher.ids: an id stands twice in one row; its mass would be counted twice",
        ),
        (
            lambda: sd.TopKTeacher(SERVED.indices, SERVED.values.to("meta")),
            ValueError,
            "teacher.logprobs is on meta, teacher.ids on cpu: move one of them",
        ),
    ],
)
def test_message(make: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=re.escape(message)):
        make()


def everything(teacher: Any, **keywords: Any) -> dict[str, Tensor]:
    stats = sd.token_stats(
        HIDDEN, WEIGHT, teacher=teacher, jsd_beta=0.4, entry_clip=0.1, **keywords
    )
    return dict(stats.items())


def test_hidden_states_and_their_logits_are_one_teacher() -> None:
    from_hidden = everything(sd.HiddenTeacher(TEACHER_HIDDEN, WEIGHT))
    from_logits = everything(sd.LogitsTeacher(LOGITS))
    for name, value in from_hidden.items():
        assert_exact(value, from_logits[name], name=name)


@pytest.mark.parametrize("tail", [True, False])
def test_a_list_of_the_whole_vocabulary_is_the_full_teacher(tail: bool) -> None:
    served = LOGITS.log_softmax(-1).topk(V, dim=-1)
    whole = everything(sd.LogitsTeacher(LOGITS))
    listed = everything(sd.TopKTeacher(served.indices, served.values, tail=tail))
    for name in ("kl_teacher_student", "kl_student_teacher", "jsd", "clipped_kl_teacher_student"):
        assert_exact(listed[name], whole[name], name=name)


def test_int32_ids_and_lists_in_another_order() -> None:
    order = torch.tensor([2, 0, 1])
    straight = everything(sd.TopKTeacher(SERVED.indices, SERVED.values))
    other = everything(sd.TopKTeacher(SERVED.indices[:, order].int(), SERVED.values[:, order]))
    assert_exact(other["kl_teacher_student"], straight["kl_teacher_student"])
    assert torch.equal(other["topk_ids"], SERVED.indices[:, order])


def test_a_list_bounds_the_divergences_of_the_full_teacher_from_below() -> None:
    """Merging outcomes never raises a divergence."""
    whole = everything(sd.LogitsTeacher(LOGITS))
    listed = everything(sd.TopKTeacher(SERVED.indices, SERVED.values))
    for name in ("kl_teacher_student", "kl_student_teacher", "jsd"):
        assert (listed[name] <= whole[name]).all()
        assert (listed[name] >= 0).all()


def test_what_a_list_does_not_hold_is_unknown_not_zero() -> None:
    targets = torch.stack([SERVED.indices[:, 1], LOGITS.argmin(-1)], dim=-1)
    stats = everything(sd.TopKTeacher(SERVED.indices, SERVED.values), targets=targets)
    assert torch.equal(stats["teacher_logp"][:, 0], SERVED.values[:, 1])
    assert stats["teacher_logp"][:, 1].isnan().all()
    assert "teacher_entropy" not in stats


def test_one_listed_id_without_tail_carries_no_signal() -> None:
    hidden = HIDDEN.clone().requires_grad_()
    teacher = sd.TopKTeacher(SERVED.indices[:, :1], SERVED.values[:, :1], tail=False)
    loss = sd.linear_divergence(hidden, WEIGHT, teacher, reduction="sum")
    assert loss.item() == 0.0
    loss.backward()
    assert torch.equal(hidden.grad, torch.zeros_like(hidden))


@pytest.mark.parametrize("kind", ["hidden", "logits"])
def test_no_gradient_reaches_a_teacher(kind: str) -> None:
    """Its head may be trainable: the student's own."""
    weight = WEIGHT.clone().requires_grad_()
    own = WEIGHT.clone().requires_grad_()
    teacher = (
        sd.HiddenTeacher(TEACHER_HIDDEN, own) if kind == "hidden" else sd.LogitsTeacher(LOGITS)
    )
    loss, _ = sd.token_loss(
        HIDDEN, weight, lambda s, tok: s.kl_teacher_student + s.teacher_entropy, teacher=teacher
    )
    loss.backward()
    assert weight.grad.any()
    assert own.grad is None


def test_logits_are_left_as_they_are() -> None:
    logits = LOGITS.clone()
    everything(sd.LogitsTeacher(logits), temperature=0.5)
    sd.token_stats(HIDDEN, WEIGHT, teacher=sd.LogitsTeacher(logits.float()))
    assert torch.equal(logits, LOGITS)


def test_ids_of_a_list_must_lie_in_the_valid_vocabulary() -> None:
    head = sd.LMHead(WEIGHT, valid_vocab=6)
    teacher = sd.TopKTeacher(torch.tensor([[1, 7]] * T), SERVED.values[:, :2])
    with pytest.raises(ValueError, match=r"teacher.ids: ids span 1..7.*0..5"):
        sd.token_stats(HIDDEN, head, teacher=teacher)


def test_logits_have_their_own_temperature() -> None:
    stats = sd.token_stats(
        HIDDEN, WEIGHT, teacher=sd.LogitsTeacher(LOGITS), temperature=0.7, teacher_temperature=1.3
    )
    log_t = (LOGITS / 1.3).log_softmax(-1)
    assert_exact(stats.teacher_entropy, -(log_t.exp() * log_t).sum(-1))
