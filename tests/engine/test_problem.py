"""`Problem`: rows of per-token tensors, positions for messages, and back to the caller's shape."""

from typing import Any

import pytest
import torch
from torch import Tensor

import sdkernels as sd
from sdkernels.engine.arguments import build_problem
from sdkernels.engine.problem import Problem, flat_view


def make(hidden: Tensor, **settings: Any) -> Problem:
    defaults: dict[str, Any] = dict.fromkeys(
        ("targets", "teacher", "tokens", "mask", "teacher_temperature", "jsd_beta", "entry_clip")
    )
    defaults |= {"temperature": 1.0, "topk": None, "topk_of": "student", "chunk_bytes": None}
    defaults |= {"slab_dtype": "float32", "backend": "torch", "debug": False}
    return build_problem(hidden, torch.randn(9, hidden.shape[-1]), **{**defaults, **settings})


HIDDEN = torch.arange(2 * 3 * 5.0).reshape(2, 3, 5)
MASK = torch.tensor([[True, False, True], [False, True, True]])


@pytest.mark.parametrize("mask", [None, MASK])
@pytest.mark.parametrize("viewable", [True, False])
def test_rows(mask: Tensor | None, viewable: bool) -> None:
    problem = make(HIDDEN, mask=mask)
    tensor = torch.arange(2 * 3 * 4).reshape(2, 3, 4)
    if not viewable:
        tensor = torch.cat([tensor, tensor], dim=1)[:, :3]
    assert (flat_view(tensor, problem.lead_shape) is not None) == viewable
    kept = torch.arange(24).reshape(6, 4)
    kept = kept if mask is None else kept[mask.flatten()]
    for lo in range(len(kept) + 1):
        for hi in range(lo, len(kept) + 1):
            assert torch.equal(problem.rows(tensor, lo, hi), kept[lo:hi])


def test_rows_of_a_view_that_is_not_flat_send_nothing_to_the_device(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Numbers that go to a GPU as a tensor are waited for, and cannot be captured in a graph."""
    problem = make(HIDDEN)
    tensor = torch.arange(2 * 4 * 4).reshape(2, 4, 4)[:, :3]
    monkeypatch.setattr(torch, "tensor", lambda *_, **__: pytest.fail("numbers become a tensor"))
    problem.rows(tensor, 1, 4)


def test_rows_of_a_view_share_its_memory() -> None:
    problem = make(HIDDEN)
    assert problem.rows(HIDDEN, 1, 3).data_ptr() == HIDDEN.flatten(0, 1)[1:].data_ptr()


@pytest.mark.parametrize("lead", [(), (6,), (2, 3), (2, 1, 3)])
def test_positions_and_restoring(lead: tuple[int, ...]) -> None:
    hidden = torch.randn(*lead, 5)
    problem = make(hidden)
    for number in range(problem.total):
        index = problem.position(number)
        assert len(index) == len(lead)
        flat = torch.zeros(problem.total)
        flat[number] = 1.0
        assert problem.restore(flat)[index] == 1.0
    assert problem.restore(torch.zeros(problem.total, 7)).shape == (*lead, 7)


def test_positions_and_restoring_with_a_mask() -> None:
    problem = make(HIDDEN, mask=MASK)
    assert [problem.position(i) for i in range(4)] == [(0, 0), (0, 2), (1, 1), (1, 2)]
    restored = problem.restore(torch.tensor([1.0, 2.0, 3.0, 4.0]))
    assert restored.tolist() == [[1.0, 0.0, 2.0], [0.0, 3.0, 4.0]]


def test_compute_dtype_follows_hidden_and_head() -> None:
    assert make(HIDDEN).spec.compute_dtype == torch.float32
    assert make(HIDDEN.bfloat16()).spec.compute_dtype == torch.float32
    assert make(HIDDEN.double()).spec.compute_dtype == torch.float64


def test_masked_tokens_are_left_out_before_the_first_product() -> None:
    """NaN in what the mask leaves out reaches nothing."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 3, 5, generator=generator)
    logits = torch.randn(2, 3, 9, generator=generator)
    hidden[~MASK] = torch.nan
    logits[~MASK] = torch.nan
    hidden.requires_grad_()
    weight = torch.randn(9, 5, generator=generator, requires_grad=True)
    loss, stats = sd.token_loss(
        hidden,
        weight,
        lambda s, tok: s.kl_teacher_student * tok.w,
        teacher=sd.LogitsTeacher(logits),
        tokens={"w": torch.ones(2, 3).masked_fill(~MASK, torch.nan)},
        mask=MASK,
    )
    loss.backward()
    assert loss.isfinite()
    assert weight.grad.isfinite().all()
    assert torch.equal(hidden.grad[~MASK], torch.zeros(2, 5))
    assert torch.equal(stats.entropy[~MASK], torch.zeros(2))
