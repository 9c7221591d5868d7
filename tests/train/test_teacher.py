"""Teacher weights: who follows whom, how fast, and what a checkpoint needs."""

from __future__ import annotations

import pytest
import torch

from sdkernels.train.errors import CheckpointError
from sdkernels.train.loading import add_lora
from sdkernels.train.teacher import (
    TeacherWeights,
    check_vocabulary,
    effective_parameters,
    fingerprint,
)


def add(model, amount: float) -> None:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(amount)


def values(model) -> dict[str, torch.Tensor]:
    return {name: parameter.detach().clone() for name, parameter in model.named_parameters()}


def test_ema_rate_is_the_share_of_the_student(make_model):
    """theta_T <- (1 - r) theta_T + r theta: .05 is slow. Inverted it would be nearly live."""
    student = make_model()
    teacher = TeacherWeights("ema", student, update_rate=0.05)
    start = values(student)
    add(student, 1.0)
    teacher.after_step(1)
    for name, value in values(teacher.model).items():
        torch.testing.assert_close(value, start[name] + 0.05, rtol=0, atol=2e-7)
    teacher.after_step(2)
    for name, value in values(teacher.model).items():
        torch.testing.assert_close(value, start[name] + 1 - 0.95**2, rtol=0, atol=2e-7)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_ema_of_a_half_precision_student_does_not_stand_still(make_model, dtype):
    """One step of .0001 is below the resolution of either; a thousand of them must show."""
    student = make_model().to(dtype)
    teacher = TeacherWeights("ema", student, update_rate=0.0001)
    assert next(teacher.model.parameters()).dtype is dtype
    start = values(student)
    add(student, 0.5)
    for step in range(1, 1001):
        teacher.after_step(step)
    name = "model.layers.0.mlp.up_proj.weight"
    moved = (values(teacher.model)[name].float() - start[name].float()).mean()
    target = (values(student)[name].float() - start[name].float()).mean()
    assert float(moved / target) == pytest.approx(1 - 0.9999**1000, abs=0.02)


def test_snapshot_renews_every_n_steps(make_model):
    student = make_model()
    teacher = TeacherWeights("snapshot", student, sync_steps=3)
    start = values(student)
    for step in range(1, 8):
        add(student, 0.25)
        teacher.after_step(step)
        reached = {1: 0, 2: 0, 3: 3, 4: 3, 5: 3, 6: 6, 7: 6}[step]
        for name, value in values(teacher.model).items():
            torch.testing.assert_close(value, start[name] + 0.25 * reached)


@pytest.mark.parametrize("kind", ["frozen", "external"])
def test_others_never_move(make_model, kind):
    student = make_model()
    teacher = TeacherWeights(
        kind, student, model=make_model(seed=1) if kind == "external" else None
    )
    before = values(teacher.model)
    add(student, 1.0)
    teacher.after_step(1)
    after = values(teacher.model)
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_copies_keep_embeddings_tied_and_want_no_gradient(make_model):
    student = make_model()
    teacher = TeacherWeights("ema", student, update_rate=0.5)
    head = teacher.model.get_output_embeddings().weight
    assert head is teacher.model.get_input_embeddings().weight
    assert head is not student.get_output_embeddings().weight
    assert not any(parameter.requires_grad for parameter in teacher.model.parameters())
    start = head.clone()
    add(student, 1.0)
    teacher.after_step(1)
    torch.testing.assert_close(head.data, start + 0.5)  # moved once, not once for each name


def test_active_is_eval_mode_without_gradient_and_leaves_no_trace(make_model):
    student = make_model().train()
    teacher = TeacherWeights("live", student)
    with teacher.active() as network:
        assert network is student
        assert not network.training
        assert not torch.is_grad_enabled()
    assert student.training
    assert torch.is_grad_enabled()


@pytest.mark.parametrize("kind", ["live", "frozen"])
def test_active_leaves_the_mode_as_it_was(make_model, kind):
    student = make_model().eval()
    teacher = TeacherWeights(kind, student)
    with teacher.active():
        pass
    assert not teacher.network.training
    assert not student.training


@pytest.mark.parametrize("mode", [True, False])
def test_the_student_beside_a_trust_region_teacher_is_at_rest(make_model, mode):
    student = make_model().train(mode)
    with TeacherWeights("trust_region", student).active_student() as network:
        assert network is student
        assert not network.training
        assert not torch.is_grad_enabled()
    assert student.training == mode


def test_lora_off_switches_the_adapter_off_and_on_again(make_model, tokenizer):
    base = make_model()
    ids = torch.arange(10)[None]
    plain = base(ids).logits
    student = add_lora(base, r=4, alpha=8, dropout=0.0, target_modules=None)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    teacher = TeacherWeights("lora_off", student)
    with teacher.active() as network:
        assert torch.equal(network(ids).logits, plain)
    assert not torch.allclose(student(ids).logits, plain)
    with pytest.raises(ValueError, match="needs a student with a LoRA adapter"):
        TeacherWeights("lora_off", make_model())


def test_ema_of_an_adapter_follows_the_product_not_the_factors(make_model):
    student = add_lora(make_model(), r=2, alpha=4, dropout=0.0, target_modules=["q_proj"])
    teacher = TeacherWeights("ema", student, update_rate=0.5)
    name = "model.layers.0.self_attn.q_proj.weight"
    start = values(teacher.model)[name]
    layer = student.get_base_model().model.layers[0].self_attn.q_proj
    with torch.no_grad():
        layer.lora_A["default"].weight.fill_(3.0)
        layer.lora_B["default"].weight.fill_(5.0)
    teacher.after_step(1)
    delta = 2 * 3.0 * 5.0 * (4 / 2)  # rank times a times b times scaling
    torch.testing.assert_close(values(teacher.model)[name], start + 0.5 * delta)


def test_a_frozen_copy_of_an_adapter_is_merged(make_model):
    student = add_lora(make_model(), r=2, alpha=4, dropout=0.0, target_modules=None)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.05)
    teacher = TeacherWeights("frozen", student)
    ids = torch.arange(10)[None]
    torch.testing.assert_close(teacher.model(ids).logits, student(ids).logits)
    assert dict(effective_parameters(student)).keys() == values(teacher.model).keys()


@pytest.mark.parametrize("kind", ["ema", "snapshot"])
def test_state_round_trip(make_model, kind):
    student = make_model().bfloat16()
    ours = TeacherWeights(kind, student, update_rate=0.1, sync_steps=1)
    add(student, 0.3)
    ours.after_step(1)
    theirs = TeacherWeights(kind, make_model().bfloat16(), update_rate=0.1, sync_steps=1)
    theirs.load_state({name: tensor.clone() for name, tensor in ours.state().items()})
    for teacher in (ours, theirs):  # also what has not yet shown in bf16
        teacher._student = student
        teacher.after_step(2)
    again = values(theirs.model)
    assert all(torch.equal(again[name], value) for name, value in values(ours.model).items())


def test_states_of_other_kinds_are_refused(make_model):
    frozen = TeacherWeights("frozen", make_model())
    ema = TeacherWeights("ema", make_model())
    with pytest.raises(CheckpointError, match="another teacher_model_kind"):
        frozen.load_state(ema.state())
    with pytest.raises(CheckpointError, match="not those of a 'ema' teacher"):
        ema.load_state(frozen.state())
    with pytest.raises(CheckpointError, match="frozen teacher is not the one"):
        TeacherWeights("frozen", make_model(seed=5)).load_state(frozen.state())
    frozen.load_state(frozen.state())
    assert TeacherWeights("live", make_model()).state() == {}


def test_fingerprint_tells_models_apart(make_model):
    assert torch.equal(fingerprint(make_model()), fingerprint(make_model()))
    moved = make_model()
    with torch.no_grad():
        next(moved.parameters()).view(-1)[0] += 1e-3
    assert not torch.allclose(fingerprint(make_model()), fingerprint(moved), rtol=1e-9, atol=0)


def test_a_frozen_teacher_that_moved_a_little_is_refused(make_model):
    state = TeacherWeights("frozen", make_model()).state()
    moved = make_model()
    with torch.no_grad():
        moved.lm_head.weight.mul_(1 + 1e-5)
    with pytest.raises(CheckpointError, match="frozen teacher is not the one"):
        TeacherWeights("frozen", moved).load_state(state)


def test_fingerprints_see_a_change_that_keeps_the_sum(make_model):
    """As a swap of two signs does."""
    moved = make_model()
    weight = next(moved.parameters()).data.view(-1)
    high, low = int(weight.argmax()), int(weight.argmin())
    weight[high] += 1.0
    weight[low] -= 1.0
    ours, theirs = fingerprint(make_model()), fingerprint(moved)
    assert ours[0].item() == pytest.approx(theirs[0].item(), abs=1e-5)
    assert theirs[1].item() == pytest.approx(ours[1].item() + 2, abs=1e-4)


def test_vocabularies(make_model, tokenizer):
    import copy

    student = make_model()
    check_vocabulary(student, tokenizer, make_model(seed=2), tokenizer, None)
    padded = make_model(vocab_size=len(tokenizer) + 5)
    with pytest.raises(ValueError, match=f"259 rows, the teacher's 264.*valid_vocab={259}"):
        check_vocabulary(student, tokenizer, padded, tokenizer, None)
    check_vocabulary(student, tokenizer, padded, tokenizer, 259)
    other = copy.deepcopy(tokenizer)
    other.add_tokens(["<new>"])
    with pytest.raises(ValueError, match=r"1 tokens differ, e\.g\. '<new>' is id None for the stu"):
        check_vocabulary(student, tokenizer, padded, other, 259)
