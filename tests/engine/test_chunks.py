"""Chunks come from a byte budget, and the memory that is really used stays inside it."""

from typing import Any

import pytest
import torch
from helpers.memory import peak_bytes
from torch import Tensor

import sdkernels as sd
from sdkernels.engine.chunks import MIB, ChunkPlan, default_chunk_bytes, plan_chunks


def no_scratch(tokens: int) -> int:
    return 0


def test_ranges_cover_every_token_once() -> None:
    for tokens in (1, 2, 7, 8, 9, 100):
        for chunk in (1, 3, 8, 1000):
            ranges = ChunkPlan(tokens, chunk).ranges
            assert [i for lo, hi in ranges for i in range(lo, hi)] == list(range(tokens))
            assert ChunkPlan(tokens, chunk).count == len(ranges)


def test_no_token_is_one_empty_chunk() -> None:
    assert ChunkPlan(0, 0).ranges == [(0, 0)]
    assert ChunkPlan(0, 0).count == 1
    assert plan_chunks(0, 10, no_scratch, 100).ranges == [(0, 0)]


@pytest.mark.parametrize(
    ("tokens", "budget", "chunk"),
    [(100, 1000, 100), (100, 999, 50), (100, 510, 50), (100, 340, 34), (101, 500, 34), (7, 10, 1)],
)
def test_chunks_are_evened_out(tokens: int, budget: int, chunk: int) -> None:
    plan = plan_chunks(tokens, 10, no_scratch, budget)
    assert plan.chunk_tokens == chunk
    assert plan.chunk_tokens * 10 <= budget


@pytest.mark.parametrize("budget", [70, 100, 130, 1000, 10_000])
def test_chunks_with_scratch_are_the_largest_that_fit(budget: int) -> None:
    def scratch(tokens: int) -> int:
        return 60 * -(-min(tokens, 80) // 8)

    def cost(tokens: int) -> int:
        return 10 * tokens + scratch(tokens)

    plan = plan_chunks(1_000_000, 10, scratch, budget)
    most = next(n for n in range(1_000_001, 0, -1) if n < 2000 and cost(n) <= budget)
    assert -(-1_000_000 // most) == len(plan.ranges)
    assert cost(plan.chunk_tokens) <= budget


def test_a_chunk_has_one_token_where_not_even_that_fits() -> None:
    assert plan_chunks(5, 10, lambda tokens: 3, 12).ranges == [(n, n + 1) for n in range(5)]


def test_default_budget() -> None:
    assert default_chunk_bytes(torch.device("cpu")) == 256 * MIB


@pytest.mark.parametrize(
    ("memory_gib", "budget_mib"), [(4, 256), (40, 1024), (80, 2048), (141, 3609.6), (288, 4096)]
)
def test_default_budget_on_gpus(
    memory_gib: int, budget_mib: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    properties = type("Properties", (), {"total_memory": memory_gib << 30})
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    assert default_chunk_bytes(torch.device("cuda")) == pytest.approx(budget_mib * MIB)


# --- memory ---------------------------------------------------------------------------------------

D, V = 24, 2000


def run(tokens: int, dtype: torch.dtype, teacher: str, budget: int, call: str, mask: bool) -> int:
    """Peak bytes of forward and backward beyond inputs, gradients and statistics."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype)

    hidden, weight = normal(tokens, D).requires_grad_(), normal(V, D).requires_grad_()
    teachers: dict[str, Any] = {
        "hidden": lambda: sd.HiddenTeacher(normal(tokens, D), normal(V, D)),
        "logits": lambda: sd.LogitsTeacher(normal(tokens + 1, V)[1:]),
        "strided": lambda: sd.LogitsTeacher(normal(2, tokens // 2 + 1, V)[:, :-1]),
    }
    shape = (2, tokens // 2) if teacher == "strided" else (tokens,)
    keywords: dict[str, Any] = {
        "teacher": teachers[teacher](),
        "targets": torch.randint(V, shape, generator=generator),
        "jsd_beta": 0.5,
        "entry_clip": 0.1,
        "chunk_bytes": budget,
        "mask": torch.rand(shape, generator=generator) > 0.3 if mask else None,
    }
    hidden = hidden.detach().reshape(*shape, D).requires_grad_()

    def forward_and_backward() -> None:
        if call == "token_loss":
            loss, _ = sd.token_loss(
                hidden,
                weight,
                lambda s, tok: (
                    s.jsd + s.clipped_kl_teacher_student + s.kl_student_teacher + s.entropy - s.logp
                ),
                slab_dtype="model",
                **keywords,
            )
        else:
            stats = sd.token_stats(hidden, weight, **keywords)
            loss = (stats.jsd + stats.kl_student_teacher + stats.entropy - stats.logp).sum()
        loss.backward()

    peak = peak_bytes(forward_and_backward)
    # Hidden and weight gradients in their dtype, the weight's also in float32 while it is summed;
    # statistics and what autograd keeps of them: under 100 numbers a token.
    gradients = hidden.nbytes + weight.nbytes + (4 * weight.numel() if dtype.itemsize < 4 else 0)
    return peak - gradients - 400 * tokens


@pytest.mark.parametrize("call", ["token_loss", "token_stats"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("teacher", "mask"), [("hidden", False), ("hidden", True), ("logits", True), ("strided", False)]
)
def test_memory_stays_within_the_budget(
    call: str, dtype: torch.dtype, teacher: str, mask: bool
) -> None:
    budget = MIB
    small, large = (run(tokens, dtype, teacher, budget, call, mask) for tokens in (100, 500))
    assert small <= budget
    assert large <= budget
    assert large > budget / 4, "a budget that is not used is a slow one"
