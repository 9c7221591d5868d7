import pytest
import torch

from sdkernels.testing import Inputs, input_families

TOKENS, HIDDEN, VOCAB = 9, 16, 37


def build(family: str, **settings: object) -> Inputs:
    return input_families()[family](TOKENS, HIDDEN, VOCAB, **settings)


def probabilities(family: str) -> tuple[torch.Tensor, torch.Tensor]:
    inputs = build(family, dtype=torch.float64)
    return inputs.logits().softmax(-1), inputs.teacher_logits().softmax(-1)


@pytest.mark.parametrize("family", input_families())
@pytest.mark.parametrize("shape", [(0, 8, 16), (1, 1, 2), (7, 24, 50)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_shapes_dtype_and_repeatability(
    family: str, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    tokens, hidden, vocab = shape
    inputs = input_families()[family](*shape, dtype=dtype)
    again = input_families()[family](*shape, dtype=dtype)
    other = input_families()[family](*shape, dtype=dtype, seed=1)
    assert inputs.hidden_TD.shape == inputs.teacher_hidden_TD.shape == (tokens, hidden)
    assert inputs.weight_VD.shape == inputs.teacher_weight_VD.shape == (vocab, hidden)
    for logits in (inputs.logits(), inputs.teacher_logits()):
        assert logits.shape == (tokens, vocab)
        assert logits.dtype == dtype
        assert not logits.isnan().any()
        assert logits.isfinite().any(dim=-1).all()
    assert torch.equal(inputs.logits(), again.logits())
    if hidden > 1:
        assert not torch.equal(inputs.weight_VD, other.weight_VD)


def test_widening_is_exact() -> None:
    inputs = build("small_random", dtype=torch.bfloat16)
    wide = inputs.to(torch.float64)
    assert torch.equal(wide.weight_VD, inputs.weight_VD.double())
    assert torch.equal(wide.to(torch.bfloat16).hidden_TD, inputs.hidden_TD)


def test_families_do_what_their_names_say() -> None:
    student, teacher = probabilities("peaked")
    assert (student[::2].max(dim=-1).values > 0.9).all()
    same_id = student[::2].argmax(-1) == teacher[::2].argmax(-1)
    assert same_id[::2].all()
    assert not same_id[1::2].any()

    for family, level in (("near_minus_100", -100.0), ("near_plus_100", 100.0)):
        inputs = build(family)
        for logits in (inputs.logits(), inputs.teacher_logits()):
            assert (logits - level).abs().max() < 10

    base, shifted = probabilities("small_random"), probabilities("constant_shift")
    torch.testing.assert_close(base, shifted, rtol=1e-12, atol=0)

    student, _ = probabilities("wide_range")
    assert student.min() < 1e-100

    student, teacher = probabilities("ties")
    assert torch.equal(student[:, 0:-1:2], student[:, 1::2])
    torch.testing.assert_close(teacher[0], torch.full_like(teacher[0], 1 / VOCAB))


def test_banned_ids() -> None:
    student, teacher = probabilities("one_banned")
    assert (student == 0).sum(-1).tolist() == [1] * TOKENS
    assert torch.equal(student == 0, teacher == 0)

    student, teacher = probabilities("leading_block_banned")
    assert (student[:, : VOCAB // 2] == 0).all()
    assert (student[:, VOCAB // 2 :] > 0).all()
    assert torch.equal(student == 0, teacher == 0)

    student, teacher = probabilities("teacher_without_support")
    assert (student > 0).all()
    assert (teacher == 0).any(dim=-1).all()


def test_teacher_equals_student_bit_for_bit() -> None:
    inputs = build("teacher_equals_student")
    assert torch.equal(inputs.logits(), inputs.teacher_logits())
