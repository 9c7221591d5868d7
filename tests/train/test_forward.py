"""Hidden states without logits, and running inside a wrapped module's forward."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sdkernels import token_loss
from sdkernels.contexts import Example, Rollout
from sdkernels.train.batch import Row, collate
from sdkernels.train.forward import (
    hidden_and_head,
    hidden_states,
    run_inside_forward,
    trunk_of,
)
from sdkernels.train.loading import add_lora


def batch_of(*pairs):
    rows = [
        Row(
            Example("a", []),
            Rollout("a", 0, "", response),
            prompt,
            weights=[1.0] * len(response),
            counts=[True] * len(response),
        )
        for prompt, response in pairs
    ]
    return collate(rows, 2, torch.device("cpu"), with_teacher=False)


def test_hidden_states_give_the_models_own_logits(make_model):
    """Packed and padded, against each sequence on its own through the whole model."""
    model = make_model().eval()
    pairs = [([5, 6, 7], [8, 9]), ([5], [10, 11, 12, 13]), ([6, 6, 6, 6, 6], [14])]
    hidden = hidden_states(model, batch_of(*pairs).student)
    logits = hidden @ model.get_output_embeddings().weight.T
    expected = torch.cat(
        [
            model(torch.tensor([prompt + response])).logits[0, len(prompt) - 1 : -1]
            for prompt, response in pairs
        ]
    )
    torch.testing.assert_close(logits, expected, rtol=1e-5, atol=1e-5)


def test_autocast_takes_the_product_with_the_head_in_its_dtype(make_model):
    model = make_model(tie_word_embeddings=False).eval()
    side = batch_of(([5, 6, 7], [8, 9])).student
    weight = model.get_output_embeddings().weight
    hidden, head = hidden_and_head(model, side, valid_vocab=100)
    assert head.weight is weight
    assert hidden.dtype == torch.float32
    assert head.valid_vocab == 100
    with torch.autocast("cpu", dtype=torch.bfloat16):
        hidden, head = hidden_and_head(model, side)
        expected = model(torch.tensor([[5, 6, 7, 8, 9]])).logits[0, 2:-1]
    assert hidden.dtype == head.weight.dtype == torch.bfloat16
    assert torch.equal(hidden @ head.weight.T, expected)
    token_loss(hidden, head, lambda s, tok: s.entropy)[0].backward()
    assert weight.grad.dtype == torch.float32
    assert weight.grad.abs().sum() > 0


def test_autocast_leaves_float64_alone(make_model):
    model = make_model().double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, head = hidden_and_head(model, batch_of(([5], [6])).student)
    assert head.weight.dtype == torch.float64


def test_no_logits_are_made(make_model):
    model = make_model()
    called = []
    model.get_output_embeddings().register_forward_hook(lambda *_: called.append(1))
    hidden_states(model, batch_of(([5], [6])).student)
    assert not called


def test_adapters_are_active_in_the_trunk(make_model):
    student = add_lora(make_model(), r=2, alpha=4, dropout=0.0, target_modules=None)
    side = batch_of(([5, 6], [7, 8])).student
    plain = hidden_states(student, side)
    with torch.no_grad():
        for name, parameter in student.named_parameters():
            if "lora_B" in name:
                parameter.fill_(0.1)
    assert not torch.allclose(hidden_states(student, side), plain)


def test_a_model_without_a_trunk():
    with pytest.raises(TypeError, match=r"Linear has no get_decoder\(\)"):
        trunk_of(nn.Linear(2, 2))


class Wrapper(nn.Module):
    """Like DDP: counts forwards and hands the output on."""

    def __init__(self, inner):
        super().__init__()
        self.inner, self.forwards = inner, 0

    def forward(self, *args, **kwargs):
        self.forwards += 1
        return self.inner(*args, **kwargs) * 2


def test_the_wrapper_sees_the_loss_and_the_rest_passes_by():
    inner = nn.Linear(2, 2)
    wrapper = Wrapper(inner)
    loss, extra = run_inside_forward(wrapper, inner, lambda: (torch.tensor(3.0), "rest"))
    assert (float(loss), extra, wrapper.forwards) == (6.0, "rest", 1)
    assert run_inside_forward(inner, inner, lambda: torch.tensor(3.0)) == 3.0
    assert "forward" not in inner.__dict__  # its own again
    assert inner(torch.ones(2)).shape == (2,)


def test_the_forward_comes_back_after_an_error():
    inner = nn.Linear(2, 2)
    patched = inner.forward
    inner.forward = patched  # as accelerate does for mixed precision

    def fail():
        raise RuntimeError("inside")

    with pytest.raises(RuntimeError, match="inside"):
        run_inside_forward(inner, inner, fail)
    assert inner.__dict__["forward"] is patched
